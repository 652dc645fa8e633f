"""A checkpoint -> the directory of transformers' own LlavaForConditionalGeneration, where that is exact.

Read by transformers, and by what reads its LLaVA: OpenVINO GenAI, mlx-vlm, vLLM. Tensors
keep their stored types. Names of before transformers 4.52, which every reader still maps
(docs/sources/tinyllava.md#checkpoint-layouts).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, processors
from transformers import GenerationConfig, LlavaConfig, PreTrainedTokenizerFast

from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID, ModelConfig
from tinyllava_edge.checkpoint.families import TOWERS
from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError, UnsupportedModelError
from tinyllava_edge.export.language_gguf import OnProgress, no_progress
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.checkpoint import HEAD_BIAS, ROWS_OF_TOKENS, tensor_facts
from tinyllava_edge.model.vlm import TinyLlava, checked_tensors
from tinyllava_edge.prompt import Turn, template_fault

from .llava_mark import CONFIG_KEY, CONFIG_VALUE, llava_mark
from .picture_prompt import around_picture, processor_template

_NAMES = {
    "connector.0.": "multi_modal_projector.linear_1.",
    "connector.2.": "multi_modal_projector.linear_2.",
}
_POOLING_HEAD = "vision_tower.vision_model.head."  # SigLIP's: no LLaVA uses it, and mlx-vlm refuses it
_SHARD_BYTES = 2 << 30


def check_llava(config: ModelConfig, image_size: int) -> None:
    """Find what LlavaForConditionalGeneration cannot compute, before any work is done.

    Args:
        config: of the checkpoint.
        image_size: of the pictures that its tower sees.

    Raises:
        UnsupportedModelError: a part that it has not; the message says what is.
    """
    why = ""
    if config.second_vision is not None:
        why = "two towers on one picture"
    elif image_size != config.vision.image_size:
        why = "a DINOv2 position table that is resized, which it does in another way than upstream did"
    elif config.connector.type != "mlp2x_gelu":
        why = f"the connector {config.connector.type!r}; LLaVA's is mlp2x_gelu"
    elif config.language.architecture == "openelm":
        why = "OpenELM, which transformers has not"
    elif config.language.family.scales_rows:
        why = "Gemma: since transformers 5 a picture's rows are not scaled as upstream scales them"
    if why:
        raise UnsupportedModelError(f"--interchange transformers is not exact for {why}. Export a bundle.")


def export_llava(
    checkpoint: Checkpoint, output: Path, *, force: bool = False, on_progress: OnProgress = no_progress
) -> dict[str, Any]:
    """Write the directory; nothing is at `output` unless all of it was checked.

    Args:
        checkpoint: what is written anew.
        output: the directory.
        force: replace an existing one.
        on_progress: called with the tensors written, and all that there are.

    Returns:
        `image_token_id` and `vocab_size`.

    Raises:
        UnsupportedModelError: as `check_llava`.
        CheckpointError: the checkpoint is damaged or not supported.
        ExportError: the tokenizer gives other ids than upstream's, or the head has a bias.
        OutputExistsError: `output` exists, and `force` is false or it is none of ours.
    """
    assets = read_assets(checkpoint)
    check_llava(checkpoint.config, assets.preprocessing.image_size)
    if fault := template_fault(assets.template):
        raise ExportError(f"{checkpoint}: {fault}. Give --template with one that asks questions.")
    tokenizer, image_id = _with_image_token(assets)
    template = processor_template(assets.template, _after_picture(tokenizer, image_id, assets))
    rows = max(assets.rows, image_id + 1)
    with output_directory(output, force=force, mark=llava_mark) as folder:
        dtype = _write_weights(folder, checkpoint, rows, on_progress)
        _write_config(folder, checkpoint.config, rows, image_id, dtype)
        _write_processor(folder, checkpoint.config, assets, tokenizer)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        generation: Any = GenerationConfig  # untyped
        generation(
            bos_token_id=assets.bos_id, eos_token_id=list(assets.stop_ids), pad_token_id=assets.eos_id
        ).save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors makes them private
    return {"image_token_id": image_id, "vocab_size": rows}


def _with_image_token(assets: Assets) -> tuple[Tokenizer, int]:
    """A tokenizer to which `<image>` is one token, the first that is free where it is new."""
    tokenizer = Tokenizer.from_str(assets.tokenizer.tokenizer_json)
    tokenizer.add_special_tokens([AddedToken(IMAGE_MARKER, special=True, normalized=False)])
    if assets.bos_id is not None:
        bos = tokenizer.id_to_token(assets.bos_id)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, assets.bos_id)]
        )
    image_id = tokenizer.token_to_id(IMAGE_MARKER)
    assert image_id is not None
    return tokenizer, image_id


def _after_picture(tokenizer: Tokenizer, image_id: int, assets: Assets) -> str:
    """What stands behind `<image>` so that one text has the ids of upstream, which cuts it at the picture.

    Upstream's SentencePiece puts a space mark in front of each piece, this tokenizer only of the first.
    """
    turns: list[Turn] = [(f"{IMAGE_MARKER}\nWhat is this?", "A cat."), ("Why?", None)]
    expected = assets.text_tokenizer().encode(assets.template, turns)
    text, behind = assets.template.render(turns), around_picture(assets.template)[1]
    for after in (behind, f" {behind}"):
        found = tokenizer.encode(text.replace(IMAGE_MARKER + behind, IMAGE_MARKER + after)).ids
        if [IMAGE_TOKEN_ID if id_ == image_id else id_ for id_ in found] == expected:
            return after
    raise ExportError(
        "--interchange transformers: this tokenizer gives other ids than upstream's where a prompt is "
        "one text and not cut at the picture. Export a bundle."
    )


def _write_weights(folder: Path, checkpoint: Checkpoint, rows: int, on_progress: OnProgress) -> str:
    """Write shards with their index; returns the stored type of most tensors, as config.json has it."""
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    types: Counter[str] = Counter()
    names = len(tensor_facts(checkpoint))

    def flush() -> None:
        file = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for count, (name, tensor) in enumerate(checked_tensors(checkpoint), start=1):
        if name.startswith(_POOLING_HEAD):
            continue
        if name == HEAD_BIAS:
            if tensor.any():
                raise ExportError(
                    "--interchange transformers: the language model's head has a bias (Phi's), which "
                    "LlavaForConditionalGeneration drops since transformers 4.52. Export a bundle."
                )
            continue
        if name in ROWS_OF_TOKENS and len(tensor) < rows:  # never the best: it is the first token's twin
            tensor = torch.cat([tensor, tensor[:1].expand(rows - len(tensor), -1)])
        if sum(value.nbytes for value in shard.values()) > _SHARD_BYTES:
            flush()
        shard[_llava_name(name)] = tensor.contiguous()
        types[str(tensor.dtype).removeprefix("torch.")] += 1
        on_progress(count, names)
    flush()
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    if len(set(places.values())) == 1:
        (folder / places.popitem()[1]).rename(folder / "model.safetensors")
    else:
        write_json(folder / "model.safetensors.index.json", index)
    return types.most_common(1)[0][0]


def _llava_name(name: str) -> str:
    old = next((prefix for prefix in _NAMES if name.startswith(prefix)), "")
    return _NAMES.get(old, "") + name[len(old) :]


def _write_config(folder: Path, config: ModelConfig, rows: int, image_id: int, dtype: str) -> None:
    with torch.device("meta"):
        model = TinyLlava(config)
    tower: Any = model.vision_tower.model
    language: Any = model.language_model
    own: dict[str, Any] = {CONFIG_KEY: CONFIG_VALUE}
    vision, text = tower.config.to_dict(), {**language.config.to_dict(), "vocab_size": rows}
    if "vision_use_head" in vision:
        vision["vision_use_head"] = False
    LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        projector_hidden_act="gelu",
        vision_feature_layer=config.vision.feature_layer,
        vision_feature_select_strategy="default" if config.vision.drop_first else "full",
        image_seq_length=config.vision.num_tokens,
        tie_word_embeddings=config.language.tie_word_embeddings,
        architectures=["LlavaForConditionalGeneration"],
        dtype=dtype,
        **own,
    ).save_pretrained(folder)
    written = read_json_object(folder / "config.json")
    if theta := written["text_config"].get("rope_parameters", {}).get("rope_theta"):
        written["text_config"]["rope_theta"] = theta  # where mlx-vlm looks, and transformers 4
        write_json(folder / "config.json", written)


def _write_processor(folder: Path, config: ModelConfig, assets: Assets, tokenizer: Tokenizer) -> None:
    own = assets.tokenizer
    roles = {"bos": own.bos_id, "eos": own.eos_id, "unk": own.unk_id, "pad": own.pad_id}
    tokens = {f"{name}_token": tokenizer.id_to_token(id_) for name, id_ in roles.items() if id_ is not None}
    fast: Any = PreTrainedTokenizerFast  # untyped
    fast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", _image_processor(assets.preprocessing))
    prefix = TOWERS[config.vision.architecture].prefix_tokens
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_MARKER,
            "patch_size": config.vision.patch_size,
            "vision_feature_select_strategy": "default" if config.vision.drop_first else "full",
            "num_additional_image_tokens": prefix,
        },
    )


def _image_processor(how: Preprocessing) -> dict[str, Any]:
    """Transformers' own steps: Llava's pads to a square, CLIP's crops, SigLIP's stretches."""
    side, crop = how.size, how.crop or how.size
    kind = "LlavaImageProcessor" if how.aspect == "pad" else "CLIPImageProcessor"
    size = {"height": side, "width": side} if how.resize == "stretch" else {"shortest_edge": side}
    return {
        "image_processor_type": kind,
        "processor_class": "LlavaProcessor",
        "do_pad": how.aspect == "pad",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": how.resample,
        "do_center_crop": how.crop is not None,
        "crop_size": {"height": crop, "width": crop},
        "do_rescale": True,
        "rescale_factor": how.rescale_factor,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }
