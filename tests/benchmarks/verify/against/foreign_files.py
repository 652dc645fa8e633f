"""Files as others make them, with the faults that they have."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx

from tests.export.gguf_files import language_source
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.interchange.mmproj import MmprojSource, write_mmproj
from tinyllava_edge.export.vision_onnx import build_vision_graph
from tinyllava_edge.model.vlm import load_model

_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def write_our_mmproj(path: Path, checkpoint: Path) -> None:
    """As `export` writes it, but for the row that stands for token 0."""
    source = language_source(checkpoint)
    model = load_model(Checkpoint(checkpoint))
    how = source.assets.preprocessing
    write_mmproj(path, MmprojSource(model=model, preprocessing=how, name="tiny", row=None))


def write_converted_mmproj(path: Path, checkpoint: Path, *, layers: int | None = None) -> None:
    """As llama.cpp's converter lays it out: block_count is one less than the layers and names no layer.

    With `v.class_embd` of a CLIP tower, its graph appends the class token (issue 25814); without
    `feature_layer` it runs a layer less than there are (issue 25817), unless `layers` is all of them.
    """
    source = language_source(checkpoint)
    model = load_model(Checkpoint(checkpoint))
    tower, how = model.config.vision, source.assets.preprocessing
    count = layers or tower.num_hidden_layers - 1
    weights = {name: value.detach().numpy() for name, value in model.vision_tower.upstream_items()}
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(tower.hidden_act != "quick_gelu")
    writer.add_vision_image_size(how.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(tower.hidden_size)
    writer.add_vision_feed_forward_length(tower.intermediate_size)
    writer.add_vision_block_count(count)
    writer.add_vision_projection_dim(model.config.language.hidden_size)
    writer.add_vision_head_count(tower.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(tower.layer_norm_eps)
    writer.add_vision_image_mean(list(how.mean))
    writer.add_vision_image_std(list(how.std))
    for name, value in _tensors(weights, count).items():
        writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
    for number in (0, 2):
        layer: Any = model.connector[number]  # type: ignore[index]
        writer.add_tensor(f"mm.{number}.weight", layer.weight.detach().numpy())
        writer.add_tensor(f"mm.{number}.bias", layer.bias.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(weights: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    embeddings = "vision_model.embeddings"
    found = {
        "v.patch_embd.weight": weights[f"{embeddings}.patch_embedding.weight"],
        "v.position_embd.weight": weights[f"{embeddings}.position_embedding.weight"],
    }
    if f"{embeddings}.patch_embedding.bias" in weights:
        found["v.patch_embd.bias"] = weights[f"{embeddings}.patch_embedding.bias"]
    if f"{embeddings}.class_embedding" in weights:
        found["v.class_embd"] = weights[f"{embeddings}.class_embedding"]
        found["v.pre_ln.weight"] = weights["vision_model.pre_layrnorm.weight"]
        found["v.pre_ln.bias"] = weights["vision_model.pre_layrnorm.bias"]
    for number in range(layers):
        for theirs, ours in _LAYER.items():
            for kind in ("weight", "bias"):
                source = f"vision_model.encoder.layers.{number}.{theirs}.{kind}"
                found[f"v.blk.{number}.{ours}.{kind}"] = weights[source]
    return found


def write_onnx_tower(path: Path, checkpoint: Path, *, feature_layer: int = -2) -> None:
    """A bare graph of tower and connector."""
    model = load_model(Checkpoint(checkpoint))
    model.vision_tower.config = replace(model.config.vision, feature_layer=feature_layer)
    onnx.save(build_vision_graph(model, model.config.vision.image_size), path)
