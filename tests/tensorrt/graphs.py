"""Vision graphs for engine builds: real sizes with random weights, and graphs that went wrong on purpose."""

import gc
import json
from pathlib import Path
from typing import Any

import onnx
import torch

from tests.tiny import tiny_config
from tinyllava_edge.config import read_model_config
from tinyllava_edge.export.precision import to_float16
from tinyllava_edge.export.vision_onnx import build_vision_graph, write_vision_graph
from tinyllava_edge.model.vlm import build_model

# The towers that TinyLLaVA's published models have, and the width of such a model's language model.
TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "image_size": 384,
        "patch_size": 14,
    },
}
HIDDEN = {"clip-vit-large-patch14-336": 2048, "siglip-so400m-patch14-384": 2560}


def write_tower_graph(name: str, folder: Path) -> Path:
    """Write a tower of full size with random weights and a two-layer connector, in float16."""
    config = tiny_config(hidden=HIDDEN[name], heads=16, kv_heads=16, layers=1, connector="mlp2x_gelu")
    config["vision_config"] = TOWERS[name]
    config["vision_hidden_size"] = TOWERS[name]["hidden_size"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = build_model(read_model_config(folder))
    graph = build_vision_graph(model, TOWERS[name]["image_size"])
    del model
    gc.collect()
    return write_graph(to_float16(graph), folder / "fp16.onnx")


def write_graph(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a graph; its path."""
    return write_vision_graph(path, proto)[0]
