"""A vision tower and a language model, as their makers publish them -> a checkpoint with a new connector.

The start of upstream's stage 1. Feature layer and token choice are those of upstream's scripts
(docs/sources/tinyllava.md#what-each-stage-trains).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.checkpoint.config import ASSEMBLED, SIDECAR_FILE
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_json_object
from tinyllava_edge.checkpoint.layouts import FLAT_FILE
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.values import whole_number
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.connector import build_connector
from tinyllava_edge.model.tensor_files import opened_safetensors, safetensors_files

from .save import checkpoint_mark, copy_tokenizer

_MAX_LENGTH = 2048  # of a conversation, pictures included
# Halves of image-text models, whose other half is not used.
_WHOLE_MODELS = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
_WRAPPER = "vision_model."


def assemble(out: Path, *, tower: Path, connector: str, language_model: Path, seed: int) -> None:
    """Write the checkpoint; an `out` that this program made is replaced.

    Args:
        out: directory of the checkpoint.
        tower: SigLIP, CLIP or DINOv2 from transformers: config, safetensors, preprocessor_config.json.
        connector: its type, as `connector_type` in a config.json; its weights are random.
        language_model: of a family that is known, likewise, with its tokenizer.
        seed: of the connector.

    Raises:
        CheckpointError: files are missing, or of another form.
        UnsupportedModelError: a part is not supported.
    """
    with output_directory(out, force=True, mark=checkpoint_mark) as directory:
        describe(directory, tower=tower, connector=connector, language_model=language_model)
        config = Checkpoint(directory).config
        tied = config.language.tie_word_embeddings
        state = {
            f"language_model.{name}": tensor
            for name, tensor in _tensors(language_model)
            if not (tied and name == "lm_head.weight")
        }
        wrapped = config.vision.architecture in _WHOLE_MODELS.values()
        for name, tensor in _tensors(tower):
            if wrapped and not _is_of_tower(name):
                continue
            name = f"{_WRAPPER}{name.removeprefix(_WRAPPER)}" if wrapped else name
            state[f"vision_tower._vision_tower.{name}"] = tensor
        _check_width(state, config.language.hidden_size, language_model)
        torch.manual_seed(seed)
        module = build_connector(config.connector, config.vision.hidden_size, config.language.hidden_size)
        for name, parameter in module.named_parameters():
            state[f"connector._connector.{name}"] = parameter.detach()
        save_file(state, directory / FLAT_FILE, metadata={"format": "pt"})


def _check_width(state: dict[str, torch.Tensor], hidden_size: int, language_model: Path) -> None:
    """A width that the weights do not have must not decide how large the connector is."""
    for name, tensor in state.items():
        if (
            name.endswith(("embed_tokens.weight", "token_embeddings.weight"))
            and tensor.shape[-1] != hidden_size
        ):
            raise CheckpointError(
                f"{language_model}: config.json says a width of {hidden_size}, its embedding has "
                f"{tensor.shape[-1]}. Is config.json of another model?"
            )


def describe(directory: Path, *, tower: Path, connector: str, language_model: Path) -> None:
    """Write all of the checkpoint but its weights; see `assemble`."""
    write_json(directory / "config.json", _config(tower, connector, language_model))
    write_json(directory / SIDECAR_FILE, {"recipe": ASSEMBLED, "data_sha256": ""})
    copy_tokenizer(language_model, directory)
    if (tower / PROCESSOR_FILE).exists():
        shutil.copyfile(tower / PROCESSOR_FILE, directory / PROCESSOR_FILE)


def _config(tower: Path, connector: str, language_model: Path) -> dict[str, Any]:
    """`config.json`, with the keys that TinyLLaVA Factory writes."""
    text = read_json_object(language_model / "config.json")
    vision = read_json_object(tower / "config.json")
    whole = str(vision.get("model_type"))
    if whole in _WHOLE_MODELS:
        if not isinstance(vision.get("vision_config"), dict):
            raise CheckpointError(f"{tower / 'config.json'}: vision_config is missing or not an object.")
        vision = {**vision["vision_config"], "model_type": _WHOLE_MODELS[whole]}
    positions = whole_number(text, "max_position_embeddings", _MAX_LENGTH, language_model / "config.json")
    return {
        "model_type": "tinyllava",
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "connector_type": connector,
        "image_aspect_ratio": "square",
        "llm_model_name_or_path": language_model.resolve().name,
        "text_config": text,
        "tokenizer_model_max_length": min(_MAX_LENGTH, positions),
        "tokenizer_name_or_path": language_model.resolve().name,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "vision_model_name_or_path": tower.resolve().name,
    }


def _is_of_tower(name: str) -> bool:
    """Whether a tensor of an image-text model, or of its tower alone, is the tower's."""
    return not name.startswith(("text_model.", "logit_", "text_projection.", "visual_projection."))


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in safetensors_files(directory):
        with opened_safetensors(path) as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield key, file.get_tensor(key)
