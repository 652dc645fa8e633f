"""A random Llama as an OpenVINO graph, of the sizes of `tiny_gguf.py`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tinyllava_edge.checkpoint.read_config import language_config
from tinyllava_edge.export.language_openvino import write_graph
from tinyllava_edge.export.openvino_weights import Weights

SIZES: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
ATTENTION = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
FEED_FORWARD = {"gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)}


def write_tiny_ir(path: Path, variant: str = "ov_int8") -> None:
    """Write the .xml, and its .bin beside it."""
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (300, 64), "model.norm": (64,)}
    for layer in (f"model.layers.{number}" for number in range(2)):
        shapes |= {f"{layer}.{norm}_layernorm": (64,) for norm in ("input", "post_attention")}
        shapes |= {f"{layer}.self_attn.{name}": shape for name, shape in ATTENTION.items()}
        shapes |= {f"{layer}.mlp.{name}": shape for name, shape in FEED_FORWARD.items()}
    with TemporaryDirectory() as scratch:
        weights = Weights(Path(scratch), variant)
        for name, shape in shapes.items():
            values = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
            weights.add(f"{name}.weight", shape, [values + np.float32(len(shape) == 1)])
        write_graph(path, language_config({"text_config": SIZES}, Path("config.json")), weights)
