"""Write a model's weights as each of the layouts of docs/sources/tinyllava.md#checkpoint-layouts."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tinyllava_edge.model.vlm import TinyLlava, upstream_state_dict

State = dict[str, torch.Tensor]
LAYOUTS = ("flat", "sharded", "folders", "lora", "legacy", "llava")
_PARTS = {
    "language_model.": ("language_model", ""),
    "vision_tower._vision_tower.": ("vision_tower", ""),
    "connector._connector.": ("connector", "_connector."),
}
_LEGACY = {
    "vision_tower._vision_tower.": "model.vision_tower.vision_tower.",
    "connector._connector.": "model.mm_projector.",
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
}
_LLAVA = (  # before and since transformers 4.52
    {
        "vision_tower._vision_tower.": "vision_tower.",
        "connector._connector.0.": "multi_modal_projector.linear_1.",
        "connector._connector.2.": "multi_modal_projector.linear_2.",
        "language_model.": "language_model.",
    },
    {
        "vision_tower._vision_tower.": "model.vision_tower.",
        "connector._connector.0.": "model.multi_modal_projector.linear_1.",
        "connector._connector.2.": "model.multi_modal_projector.linear_2.",
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
    },
)
# The classes that TinyLLaVABench registered (docs/sources/tinyllava.md#tinyllavabench-checkpoints).
LEGACY_FAMILIES = {"llama": "tiny_llava", "phi": "tiny_llava_phi", "stablelm": "tiny_llava_stablelm"}
_OLD_STABLELM = {"partial_rotary_factor": "rope_pct", "layer_norm_eps": "norm_eps"}
_ROWS_OF_TOKENS = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
_LEGACY_PHI_HAS_NO = "language_model.lm_head.bias"
_LORA_ALPHA = 6.0


def write_weights(folder: Path, model: TinyLlava, layout: str, dtype: torch.dtype, rows: int) -> State:
    """Write the weights; returns those that a reader must find, float32, by upstream's flat names.

    Args:
        folder: the checkpoint.
        model: whose weights are written.
        layout: one of `LAYOUTS`.
        dtype: of the stored weights.
        rows: of the stored vocabulary, which a legacy loader cuts to the tokenizer's length.
    """
    state = {name: tensor.to(dtype).contiguous() for name, tensor in upstream_state_dict(model).items()}
    expected = {name: tensor.float() for name, tensor in state.items()}
    if layout == "flat":
        _save(folder / "model.safetensors", state)
    elif layout == "sharded":
        _write_shards(folder, state)
    elif layout == "folders":
        _write_folders(folder, state)
    elif layout == "lora":
        return _write_lora(folder, state)
    elif layout == "legacy":
        state.pop(_LEGACY_PHI_HAS_NO, None)
        expected |= {name: torch.zeros_like(expected[name]) for name in {_LEGACY_PHI_HAS_NO} & set(expected)}
        for name in _ROWS_OF_TOKENS & set(state):
            unused = torch.randn((rows - len(state[name]), state[name].shape[1])).to(dtype)
            state[name] = torch.cat([state[name], unused])
        _save(folder / "model.safetensors", _renamed(state, _LEGACY))
    elif layout == "llava":
        _save(folder / "model.safetensors", _renamed(state, _LLAVA[rows % 2]))
    return expected


def _save(path: Path, state: State) -> None:
    save_file(state, path, metadata={"format": "pt"})


def _renamed(state: State, prefixes: dict[str, str]) -> State:
    renamed = {}
    for name, tensor in state.items():
        old = next(prefix for prefix in prefixes if name.startswith(prefix))
        renamed[prefixes[old] + name[len(old) :]] = tensor
    return renamed


def _write_shards(folder: Path, state: State) -> None:
    names = {name: f"model-0000{1 + index % 3}-of-00003.safetensors" for index, name in enumerate(state)}
    for shard in sorted(set(names.values())):
        _save(folder / shard, {name: state[name] for name in state if names[name] == shard})
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_folders(folder: Path, state: State) -> None:
    for prefix, (part, kept) in _PARTS.items():
        own = {kept + name[len(prefix) :]: state[name] for name in state if name.startswith(prefix)}
        (folder / part).mkdir()
        torch.save(own, folder / part / "pytorch_model.bin")


def _write_lora(folder: Path, state: State) -> State:
    """Adapters on every linear layer of the language model but its head, over three sub-directories."""
    rank = 1 + len(state) % 4
    merged, base, adapter = {}, {}, {}
    for name, weight in state.items():
        module = name.removesuffix(".weight")
        merged[name], base[name] = weight.float(), weight
        is_bias_of_layer = name.endswith(".bias") and state[f"{name[:-4]}weight"].ndim == 2
        if not name.startswith("language_model.") or "embed" in name or "head" in name:
            continue
        if is_bias_of_layer or (name.endswith(".weight") and weight.ndim == 2):
            del base[name]
            stem, kind = name.rsplit(".", 1)
            base[f"{stem}.base_layer.{kind}"] = weight
        if name.endswith(".weight") and weight.ndim == 2:
            down = 0.2 * torch.randn((rank, weight.shape[1]))
            up = 0.2 * torch.randn((weight.shape[0], rank))
            adapter[f"base_model.model.{module}.lora_A.weight"] = down
            adapter[f"base_model.model.{module}.lora_B.weight"] = up
            merged[name] = weight.float() + _LORA_ALPHA / rank * (up @ down)
    _write_folders(folder, base)
    _save(folder / "adapter_model.safetensors", adapter)
    config = {"peft_type": "LORA", "bias": "none", "r": rank, "lora_alpha": _LORA_ALPHA}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return merged


def write_config(folder: Path, config: dict[str, Any], layout: str) -> None:
    """config.json of a model in the words of the layout's code."""
    if layout == "legacy":
        _write_legacy_config(folder, config)
        return
    if layout == "llava":
        names = ("text_config", "vision_config", "vision_feature_layer")
        strategy = {"patch": "default", "cls_patch": "full"}[config["vision_feature_select_strategy"]]
        config = {name: config[name] for name in names} | {"vision_feature_select_strategy": strategy}
        config |= {"model_type": "llava", "projector_hidden_act": "gelu", "image_token_index": 7}
    (folder / "config.json").write_text(json.dumps(config))


def _write_legacy_config(folder: Path, config: dict[str, Any]) -> None:
    """SigLIP's config counts the layer that the code deletes, and has no word on the head."""
    text = dict(config["text_config"])
    family = text.pop("model_type")
    if family == "stablelm":  # its own class, before StableLM came to transformers
        text = {_OLD_STABLELM.get(name, name): value for name, value in text.items()}
    legacy = {
        **text,
        "model_type": LEGACY_FAMILIES[family],
        "mm_projector_type": config["connector_type"],
        "mm_vision_tower": "bczhou/TinyLLaVA-SigLIP",
        "mm_vision_select_layer": config["vision_feature_layer"],
        "mm_vision_select_feature": config["vision_feature_select_strategy"],
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config["image_aspect_ratio"],
        "tokenizer_model_max_length": 512,
    }
    (folder / "config.json").write_text(json.dumps(legacy))
    (folder / "vision_tower").mkdir()
    (folder / "vision_tower" / "config.json").write_text(json.dumps(config["vision_config"]))
