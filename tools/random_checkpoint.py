"""Checkpoints with the shapes of released TinyLLaVA models and random weights, in float16.

    python -m tools.random_checkpoint qwen2-0.5b-siglip DIR --tokenizers DIR

Never in memory as a whole: their sizes are what is tried. Sharded at 5 GB, as TinyLLaVA Factory saves.
"""

import json
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tools
from tinyllava_edge.atomic_files import check_output, write_json
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE
from tinyllava_edge.checkpoint.layouts import FLAT_INDEX
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.assets import PUBLIC_PROCESSORS
from tinyllava_edge.model.vlm import TinyLlava, upstream_state_dict

SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 24  # random numbers made at once
Record = dict[str, Any]


def _tower(architecture: str, *, size: int, hidden: int, intermediate: int, layers: int) -> Record:
    return {
        "model_type": architecture,
        "hidden_size": hidden,
        "image_size": size,
        "intermediate_size": intermediate,
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "patch_size": 14,
    }


_SIGLIP = _tower("siglip_vision_model", size=384, hidden=1152, intermediate=4304, layers=27)
_CLIP_L = _tower("clip_vision_model", size=336, hidden=1024, intermediate=4096, layers=24)
_SIGLIP_PROCESSOR = PUBLIC_PROCESSORS["google/siglip-so400m-patch14-384"]
_CLIP_PROCESSOR = PUBLIC_PROCESSORS["openai/clip-vit-large-patch14-336"]
_PHI_2 = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
    "vocab_size": 51200,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
_QWEN2_HALF_B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
_TINYLLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
}


@dataclass(frozen=True)
class Shape:
    """A model's parts as config.json has them, and what comes with it."""

    language: Record
    vision: Record
    processor: Record
    tokenizer: str  # folder of the vocabulary's files
    parameters: int  # from elsewhere, so that a wrong config is seen

    def config(self) -> Record:
        """config.json, with the keys of TinyLLaVA Factory's that are read."""
        return {
            "model_type": "tinyllava",
            "connector_type": "mlp2x_gelu",
            "image_aspect_ratio": "square",
            "tokenizer_model_max_length": 2048,
            "text_config": self.language,
            "vision_config": self.vision,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "patch",
            "torch_dtype": "float16",
        }


# The numbers are published ones, or summed by hand from published sizes (docs/sources/tinyllava.md#sizes).
SHAPES = {
    "phi2-siglip": Shape(_PHI_2, _SIGLIP, _SIGLIP_PROCESSOR, "phi-gpt2", 3_217_417_280),
    "qwen2-0.5b-siglip": Shape(_QWEN2_HALF_B, _SIGLIP, _SIGLIP_PROCESSOR, "qwen2", 924_095_168),
    "tinyllama-clip-l336": Shape(_TINYLLAMA, _CLIP_L, _CLIP_PROCESSOR, "llama-spm", 1_409_851_392),
}


def write_random_checkpoint(directory: Path, shape: Shape, tokenizers: Path) -> None:
    """Write a checkpoint of random float16 weights, of which at most `CHUNK` are in memory.

    Args:
        directory: created.
        shape: what to write.
        tokenizers: a directory with a folder of tokenizer files for each vocabulary.

    Raises:
        UsageError: the tokenizer's folder is not there.
    """
    folder = tokenizers / shape.tokenizer
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory. Give --tokenizers DIR with {shape.tokenizer} in it.")
    directory.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copyfile(path, directory / path.name)
    write_json(directory / "config.json", shape.config())
    write_json(directory / PROCESSOR_FILE, shape.processor)
    with torch.device("meta"):
        model = TinyLlava(Checkpoint(directory).config)
    shapes = {key: tuple(value.shape) for key, value in upstream_state_dict(model).items()}
    found = sum(prod(shape) for shape in shapes.values())
    assert found == shape.parameters, f"{found:,} parameters, expected {shape.parameters:,}"
    _write_shards(directory, shapes)


def _write_shards(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write `model-0000n-of-0000m.safetensors` and their index."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, shape in shapes.items():
        if size + 2 * prod(shape) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += 2 * prod(shape)
    weight_map = {}
    generator = torch.Generator().manual_seed(0)
    for index, keys in enumerate(shards, start=1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(directory / name, {key: shapes[key] for key in keys}, generator)
        weight_map.update(dict.fromkeys(keys, name))
    total = sum(2 * prod(shape) for shape in shapes.values())
    write_json(directory / FLAT_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    """Write a shard; the format's own package (whose documentation describes it) wants it whole in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, shape in shapes.items():
            # Norms around 1, all else around 0, with the deviation that such models start from.
            middle = 1 if "norm" in key and key.endswith("weight") else 0
            for start in range(0, prod(shape), CHUNK):
                noise = torch.randn(min(CHUNK, prod(shape) - start), generator=generator)
                noise.mul_(0.02).add_(middle).half().numpy().tofile(file)


def main(
    name: Annotated[str, typer.Argument(help=f"Shape: {', '.join(SHAPES)}.")],
    directory: Annotated[Path, typer.Argument(help="Checkpoint to write.")],
    tokenizers: Annotated[Path, typer.Option(help="Folders of tokenizer files: phi-gpt2, qwen2, llama-spm.")],
) -> None:
    """Write a checkpoint of random weights."""
    if name not in SHAPES:
        raise UsageError(f"{name!r} is not known. Known: {', '.join(SHAPES)}.")
    check_output(directory, force=False)
    write_random_checkpoint(directory, SHAPES[name], tokenizers)


if __name__ == "__main__":
    tools.run(main)
