"""A vision tower and a language model, as their makers publish them -> a checkpoint with a new connector.

The start of upstream's stage 1. Feature layer and token choice are those of upstream's scripts
(docs/sources/tinyllava.md#what-each-stage-trains).
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.checkpoint.config import (
    ASSEMBLED,
    BUDGETS_KEY,
    GRID_CONNECTORS,
    POOL_FACTOR,
    QFORMER_KEY,
    SECOND_TOWER_KEY,
    SIDECAR_FILE,
    VisionConfig,
)
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_json_object
from tinyllava_edge.checkpoint.layouts import FLAT_FILE, whole_file
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.tensor_names import BUFFERS
from tinyllava_edge.checkpoint.values import whole_number
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.connector import build_connector
from tinyllava_edge.model.qformer import QFormer
from tinyllava_edge.model.tensor_files import opened_tensors, tensor_files

from .parts import MAX_LENGTH, Parts, part_name
from .save import copy_tokenizer
from .written import checkpoint_mark

_BERT_STD = 0.02
# Halves of image-text models, whose other half is not used.
_WHOLE_MODELS = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
_WRAPPER = "vision_model."


def assemble(out: Path, parts: Parts, *, seed: int) -> None:
    """Write the checkpoint; an `out` that this program made is replaced.

    Args:
        out: directory of the checkpoint.
        parts: what it is made of.
        seed: of the connector.

    Raises:
        CheckpointError: files are missing, or of another form.
        UnsupportedModelError: a part is not supported.
    """
    with output_directory(out, force=True, mark=checkpoint_mark) as directory:
        describe(directory, parts)
        config = Checkpoint(directory).config
        state = {
            f"language_model.{name}": tensor
            for name, tensor in _tensors(parts.llm, parts.allow_pickle)
            if not (config.language.tie_word_embeddings and name == "lm_head.weight")
        }
        halves = {"": (parts.tower, config.vision)}
        if parts.second_tower is not None and config.second_vision is not None:
            halves = {"clip.": halves[""], "dinov2.": (parts.second_tower, config.second_vision)}
        for prefix, (tower, vision) in halves.items():
            for name, tensor in _tower_tensors(tower, vision, parts.allow_pickle):
                state[f"vision_tower._vision_tower.{prefix}{name}"] = tensor
        _check_width(state, config.language.hidden_size, parts.llm)
        torch.manual_seed(seed)
        module = build_connector(config.connector, config.vision.hidden_size, config.language.hidden_size)
        if isinstance(module, QFormer):
            _initialise(module)
        for name, parameter in module.named_parameters():
            state[f"connector._connector.{name}"] = parameter.detach()
        save_file(state, directory / FLAT_FILE, metadata={"format": "pt"})


@torch.no_grad()
def _initialise(module: QFormer) -> None:
    """As BERT's own weights and upstream's queries: docs/sources/tinyllava.md#q-former."""
    nn.init.normal_(module.query_tokens, std=_BERT_STD)
    for layer in module.bert.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_BERT_STD)
            nn.init.zeros_(layer.bias)


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


def describe(directory: Path, parts: Parts) -> None:
    """Write all of the checkpoint but its weights; see `assemble`."""
    write_json(directory / "config.json", _config(parts))
    write_json(directory / SIDECAR_FILE, {"recipe": ASSEMBLED, "data_sha256": ""})
    copy_tokenizer(parts.tokenizer or parts.llm, directory)
    if (parts.tower / PROCESSOR_FILE).exists():
        shutil.copyfile(parts.tower / PROCESSOR_FILE, directory / PROCESSOR_FILE)


def _config(parts: Parts) -> dict[str, Any]:
    """`config.json`, with the keys that TinyLLaVA Factory writes, and two of ours for what it only names."""
    path = parts.llm / "config.json"
    text = read_json_object(path)
    config: dict[str, Any] = {
        "model_type": "tinyllava",
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "connector_type": parts.connector,
        "image_aspect_ratio": parts.image_aspect_ratio,
        "llm_model_name_or_path": part_name(parts.llm),
        "text_config": text,
        "tokenizer_model_max_length": parts.max_length,
        "tokenizer_name_or_path": part_name(parts.tokenizer or parts.llm),
        "vision_config": _vision_config(parts.tower),
        "vision_feature_layer": parts.feature_layer,
        "vision_feature_select_strategy": parts.feature_select,
        "vision_model_name_or_path": part_name(parts.tower),
    }
    if parts.max_length is None:
        key = "max_context_length" if "max_context_length" in text else "max_position_embeddings"  # OpenELM's
        config["tokenizer_model_max_length"] = min(MAX_LENGTH, whole_number(text, key, MAX_LENGTH, path))
    if parts.num_queries is not None:
        config["num_queries"] = parts.num_queries
    if parts.num_layers is not None and parts.bert is None:
        config["num_resampler_layers"] = parts.num_layers
    if parts.budgets:
        config[BUDGETS_KEY] = list(parts.budgets)
    elif parts.connector in GRID_CONNECTORS:
        config["connector_factor"] = parts.factor or POOL_FACTOR
    if parts.bert is not None:
        config[QFORMER_KEY] = asdict(parts.bert)
    if parts.second_tower is not None:
        config |= {
            "vision_model_name_or_path2": part_name(parts.second_tower),
            SECOND_TOWER_KEY: _vision_config(parts.second_tower),
        }
    return config


def _vision_config(tower: Path) -> dict[str, Any]:
    vision = read_json_object(tower / "config.json")
    whole = str(vision.get("model_type"))
    if whole not in _WHOLE_MODELS:
        return vision
    if not isinstance(vision.get("vision_config"), dict):
        raise CheckpointError(f"{tower / 'config.json'}: vision_config is missing or not an object.")
    return {**vision["vision_config"], "model_type": _WHOLE_MODELS[whole]}


def _tower_tensors(
    tower: Path, config: VisionConfig, allow_pickle: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """A tower's own tensors under the names that upstream's files have."""
    wrapped = config.architecture in _WHOLE_MODELS.values()
    for name, tensor in _tensors(tower, allow_pickle):
        if not wrapped:
            yield name, tensor
        elif _is_of_tower(name):
            yield f"{_WRAPPER}{name.removeprefix(_WRAPPER)}", tensor


def _is_of_tower(name: str) -> bool:
    """Whether a tensor of an image-text model, or of its tower alone, is the tower's."""
    return not name.startswith(("text_model.", "logit_", "text_projection.", "visual_projection."))


def _tensors(directory: Path, allow_pickle: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """All of a model, buffers left out; a tensor that the file has twice once."""
    whole = whole_file(directory)
    if whole is None or (whole.suffix == ".bin" and not allow_pickle):
        pickles = "" if whole is None else f" {whole.name} is a pickle: give --allow-pickle if you trust it."
        raise CheckpointError(f"{directory}: holds no weights in safetensors.{pickles}")
    for path in tensor_files(whole, allow_pickle):
        with opened_tensors(path, allow_pickle) as (names, read):
            for name in names:
                if not name.endswith(BUFFERS):
                    tensor = read(name)
                    yield name, tensor.clone() if path.suffix == ".bin" else tensor
