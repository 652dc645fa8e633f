"""What a checkpoint needs besides weights: preprocessing, tokenizer, special ids.

Upstream fetches these from other repositories: docs/sources/tinyllava.md#what-a-checkpoint-only-names. Here
they come from the checkpoint's directory, from `--sources DIR`, or, for the public image processors, from a
table.
"""

from dataclasses import dataclass
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from typing import Any, Literal, cast

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.image import Preprocessing, preprocessing_from_processor
from tinyllava_edge.prompt import Template, TextTokenizer, template_named
from tinyllava_edge.tokenizer_file import open_tokenizer

from .tokenizer import TOKENIZER_FILES, TokenizerAssets, read_tokenizer

PROCESSOR_FILE = "preprocessor_config.json"
_SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_center_crop": True,
}
_DINOV2 = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_center_crop": True}
# Source: docs/sources/tinyllava.md#public-image-processors. A mixture of features has CLIP's alone.
PUBLIC_PROCESSORS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {**_SIGLIP, "size": {"height": 384, "width": 384}},
    "google/siglip-base-patch16-224": {**_SIGLIP, "size": {"height": 224, "width": 224}},
    "google/siglip-base-patch16-384": {**_SIGLIP, "size": {"height": 384, "width": 384}},
    "openai/clip-vit-large-patch14-336": {**_CLIP, "size": 336, "crop_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP, "size": 224, "crop_size": 224},
    "openai/clip-vit-base-patch16": {**_CLIP, "size": 224, "crop_size": 224},
    "facebook/dinov2-large": {**_DINOV2, "size": {"shortest_edge": 256}, "crop_size": 224},
}


@dataclass(frozen=True, kw_only=True)
class Assets:
    """Everything that prepares the input and ends the output."""

    preprocessing: Preprocessing
    tokenizer: TokenizerAssets
    template: Template
    bos_id: int | None  # None where prompts do not start with one
    eos_id: int
    stop_ids: tuple[int, ...]
    largest_id: int
    rows: int  # of the model's vocabulary

    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer that a runtime will use.

        Raises:
            CheckpointError: it has tokens that the model has no rows for.
        """
        if self.largest_id >= self.rows:
            raise CheckpointError(
                f"the tokenizer has ids up to {self.largest_id}, the model only {self.rows} rows. Is one of "
                "them of another checkpoint?"
            )
        return TextTokenizer(self.tokenizer.tokenizer_json, bos_id=self.bos_id, checked=True)


def read_assets(checkpoint: Checkpoint) -> Assets:
    """Gather a checkpoint's assets.

    Raises:
        CheckpointError: a file is nowhere; the message lists where it was looked for.
    """
    config = checkpoint.config
    template = template_named(config.template)
    directory = tokenizer_directory(checkpoint)
    tokenizer = read_tokenizer(directory)
    eos_id = tokenizer.eos_id if tokenizer.eos_id is not None else config.language.eos_token_id
    if eos_id is None:
        raise CheckpointError(f"{checkpoint}: neither tokenizer nor config.json names an EOS token.")
    opened = open_tokenizer(tokenizer.tokenizer_json, f"{directory}: the tokenizer", CheckpointError)
    end_id = opened.token_to_id(template.end)
    stops = {eos_id, config.language.eos_token_id, end_id} - {None}
    return Assets(
        preprocessing=_preprocessing(checkpoint),
        tokenizer=tokenizer,
        template=template,
        bos_id=tokenizer.bos_id if tokenizer.adds_bos else None,
        eos_id=eos_id,
        stop_ids=tuple(sorted(cast("set[int]", stops))),
        largest_id=max(opened.get_vocab().values()),
        rows=config.language.vocab_size,
    )


def tokenizer_directory(checkpoint: Checkpoint) -> Path:
    """Where the tokenizer's files are: the checkpoint, or a folder in `sources`.

    Raises:
        CheckpointError: nowhere; the message lists where they were looked for.
    """
    name = checkpoint.config.language.name_or_path
    candidates = checkpoint.folders(name)
    for candidate in candidates:
        if any((candidate / file).exists() for file in TOKENIZER_FILES):
            return candidate
    raise CheckpointError(
        f"no {', '.join(TOKENIZER_FILES)} in {', '.join(map(str, candidates))}. Give --sources DIR "
        f"with the files of {name or 'the language model'}."
    )


def processor_path(checkpoint: Checkpoint) -> Path | None:
    """The file that says how pictures are prepared; None where built-in values stand in for it."""
    folders = checkpoint.folders(checkpoint.config.vision.name_or_path)
    paths = [folder / PROCESSOR_FILE for folder in folders]
    return next((path for path in paths if lexists(path)), None)


def _preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    config = checkpoint.config
    name = config.vision.name_or_path
    aspect = cast(Literal["square", "pad"], config.image_aspect_ratio)
    path = processor_path(checkpoint)
    if path is not None:
        where, raw = str(path), read_json_object(path)
    elif name in PUBLIC_PROCESSORS:
        where, raw = f"built-in values of {name}", PUBLIC_PROCESSORS[name]
    elif not config.vision.has_head:  # TinyLLaVABench's own SigLIP class: its processor is code
        side = config.vision.image_size
        where, raw = "TinyLLaVABench's SigLIP processor", {**_SIGLIP, "size": {"height": side, "width": side}}
    else:
        raise CheckpointError(
            f"no {PROCESSOR_FILE} in {', '.join(map(str, checkpoint.folders(name)))}, and "
            f"{name!r} is not one of the known public towers. Give --sources DIR with the files of "
            f"{name or 'the vision tower'}."
        )
    how = preprocessing_from_processor(raw, aspect=aspect, where=where)
    # DINOv2 takes any size: its position table is interpolated.
    if how.image_size != config.vision.image_size and config.vision.architecture != "dinov2":
        raise CheckpointError(
            f"{where}: pictures of {how.image_size} px, but vision_config.image_size is "
            f"{config.vision.image_size}."
        )
    return how
