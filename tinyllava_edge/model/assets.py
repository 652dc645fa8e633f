"""What a checkpoint needs besides weights: preprocessing, tokenizer, special ids.

Upstream fetches these from other repositories: docs/sources/tinyllava.md#what-a-checkpoint-only-names. Here
they come from the checkpoint's directory, from `--sources DIR`, or, for the public image processors, from a
table.
"""

from dataclasses import dataclass, replace
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path
from typing import Any, Literal, cast

from tokenizers import Tokenizer

from tinyllava_edge.checkpoint.config import VisionConfig
from tinyllava_edge.checkpoint.families import TOWERS
from tinyllava_edge.checkpoint.files import NESTED_PROCESSOR, PROCESSOR_FILE, processor_in, read_processor
from tinyllava_edge.checkpoint.layouts import TOKENIZER_FILES
from tinyllava_edge.checkpoint.llava_line import picture_of
from tinyllava_edge.checkpoint.nanovlm import is_nanovlm
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.source_names import is_plain, public_name, say_taken
from tinyllava_edge.checkpoint.values import place_of
from tinyllava_edge.errors import CheckpointError, MissingFileError, UnsupportedModelError
from tinyllava_edge.image import Preprocessing, preprocessing_from_processor
from tinyllava_edge.prompt import (
    EOS,
    Template,
    TextTokenizer,
    end_of_answer,
    template_fault,
    template_named,
)
from tinyllava_edge.tokenizer_file import open_tokenizer

from .tokenizer import TokenizerAssets, read_tokenizer

# What a processor does beside resizing, cropping and normalizing.
_OTHER_STEPS = (
    *("image_grid_pinpoints", "do_image_splitting", "do_pan_and_scan", "max_num_patches", "max_pixels"),
    *("do_pad", "do_flip_channel_order", "do_reduce_labels"),
)
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
    template = replace(template, picture=picture_of(checkpoint.raw_config) or template.picture)
    directory = tokenizer_directory(checkpoint)
    is_fast = is_nanovlm(checkpoint.raw_config)
    tokenizer = read_tokenizer(directory, fast=is_fast, extra_tokens=config.extra_tokens)
    eos_id = next(iter(config.language.eos_token_ids), None) if tokenizer.eos_id is None else tokenizer.eos_id
    if eos_id is None:
        raise CheckpointError(f"{checkpoint}: neither tokenizer nor config.json names an EOS token.")
    opened = open_tokenizer(tokenizer.tokenizer_json, f"{directory}: the tokenizer", CheckpointError)
    largest_id = max(opened.get_vocab().values())
    if config.extra_tokens and largest_id >= config.language.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has ids up to {largest_id} with vlm_extra_tokens behind its own, "
            f"but {checkpoint.config_path} has lm_vocab_size {config.language.vocab_size}: image_token or "
            f"others have no row. Is it the tokenizer of lm_tokenizer, {config.language.name_or_path!r}?"
        )
    if template.end == EOS:
        template = replace(template, end=opened.id_to_token(eos_id) or EOS)
    stops = {eos_id, *config.language.eos_token_ids}
    if template_fault(template) is None:  # one that only trains stops nothing
        stops.add(_end_of_answer(opened, template, f"{directory}: the tokenizer", config.template_reason))
    return Assets(
        preprocessing=read_preprocessing(checkpoint),
        tokenizer=tokenizer,
        template=template,
        bos_id=tokenizer.bos_id if tokenizer.adds_bos and template.starts_with_bos else None,
        eos_id=eos_id,
        stop_ids=tuple(sorted(stops)),
        largest_id=largest_id,
        rows=config.language.vocab_size,
    )


def _end_of_answer(tokenizer: Tokenizer, template: Template, where: str, reason: str) -> int:
    """The id that ends an answer, of a tokenizer that has every special token of the template."""
    end_id = end_of_answer(tokenizer, template)
    absent = [template.end] if end_id is None else []
    absent += [mark for mark in template.marks if tokenizer.token_to_id(mark) is None]
    if end_id is None or absent:
        what = "ends an answer: the model would not stop" if end_id is None else "marks its turns"
        raise CheckpointError(
            f"{where} has no token {absent[0]!r}, with which template {template.name!r} ({reason}) {what}. "
            "Give --template, or the files of the tokenizer that the checkpoint was trained with."
        )
    return end_id


def tokenizer_directory(checkpoint: Checkpoint) -> Path:
    """Where the tokenizer's files are: the checkpoint, or a folder in `sources`.

    Raises:
        CheckpointError: nowhere; the message lists where they were looked for.
    """
    name = checkpoint.config.language.name_or_path
    candidates = checkpoint.folders(name)
    for candidate in candidates:
        if any(lexists(candidate / file) for file in TOKENIZER_FILES):
            _say_folder(checkpoint, name, candidate)
            return candidate
    raise MissingFileError(
        f"no {', '.join(TOKENIZER_FILES)} in {', '.join(map(str, candidates))}. Give --sources DIR "
        f"with the files of {name or 'the language model'}."
    )


def processor_path(checkpoint: Checkpoint) -> Path | None:
    """The file that says how pictures are prepared; None where built-in values stand in for it."""
    name = checkpoint.config.vision.name_or_path
    paths = (processor_in(folder) for folder in checkpoint.folders(name))
    path = next((path for path in paths if path is not None), None)
    if path is not None:
        _say_folder(checkpoint, name, path.parent)
    return path


def _say_folder(checkpoint: Checkpoint, name: str, folder: Path) -> None:
    """Say what was taken in the place of a path of the trainer's machine."""
    sources = checkpoint.sources
    if folder == checkpoint.path or sources is None or not name:
        return
    if folder != (sources if is_plain(name) else checkpoint.path) and folder != sources / name:
        say_taken(name, str(folder))


def _at_size(processor: dict[str, Any], vision: VisionConfig) -> dict[str, Any]:
    """A public processor for a tower of another size, whose positions leave no other choice."""
    if TOWERS[vision.architecture].any_size:
        return processor
    if "crop_size" in processor:
        return {**processor, "size": vision.image_size, "crop_size": vision.image_size}
    return {**processor, "size": {"height": vision.image_size, "width": vision.image_size}}


def read_preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """How a checkpoint's pictures are prepared.

    Raises:
        CheckpointError: the processor's file is nowhere, or does not fit the tower or the connector.
        UnsupportedModelError: it does what is not supported.
    """
    config = checkpoint.config
    name = config.vision.name_or_path
    aspect = cast(Literal["square", "pad"], config.image_aspect_ratio)
    if (fixed := config.processor) is not None:
        return preprocessing_from_processor(fixed, aspect=aspect, where=str(checkpoint.config_path))
    path, side = processor_path(checkpoint), config.vision.image_size
    public = public_name(name, PUBLIC_PROCESSORS)
    if path is not None:
        where, raw = str(path), read_processor(path)
    elif public is not None:
        where, raw = f"built-in values of {public}", _at_size(PUBLIC_PROCESSORS[public], config.vision)
        if public != name or raw != PUBLIC_PROCESSORS[public]:
            say_taken(name, f"{where}, for pictures of {side} px")
    elif checkpoint.line and checkpoint.line.siglip_processor and not config.vision.has_head:
        where = f"{checkpoint.line.code}'s SigLIP processor"  # docs/sources/llava_line.md#pictures
        raw = {**_SIGLIP, "size": {"height": side, "width": side}}
    else:
        raise MissingFileError(
            f"no {PROCESSOR_FILE}, nor {NESTED_PROCESSOR} with the key 'image_processor', in "
            f"{', '.join(map(str, checkpoint.folders(name)))}, and {name!r} is not one of the known "
            f"public towers. Give --sources DIR with the files of {name or 'the vision tower'}."
        )
    if odd := next((key for key in _OTHER_STEPS if raw.get(key)), None):
        raise UnsupportedModelError(
            f"{where}: {odd} is {raw[odd]!r:.60}: pictures that are cut into tiles, or padded by their "
            f"processor, are not supported ({raw.get('image_processor_type')})."
        )
    how = preprocessing_from_processor(raw, aspect=aspect, where=where)
    if how.image_size != config.vision.image_size and not TOWERS[config.vision.architecture].any_size:
        raise CheckpointError(
            f"{where}: pictures of {how.image_size} px, but "
            f"{place_of(checkpoint.factory_config, 'vision_config', checkpoint.config_path)}image_size is "
            f"{config.vision.image_size}."
        )
    config.check_grid(how.image_size, str(checkpoint.config_path))
    return how
