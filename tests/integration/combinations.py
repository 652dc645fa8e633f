"""Random TinyLLaVA checkpoints: any parts, sizes, dtype and layout that upstream's code can leave behind.

`draw_combination` says what, as one line that a failing test prints; `write_combination` writes it with
random weights (norms, biases and layer scales too) and returns them, so that reading can be judged as well.
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2

from tests.integration.layouts import LAYOUTS, LEGACY_FAMILIES, write_config, write_weights
from tests.tiny import TOKENIZER_FOLDER
from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.checkpoint.families import VISION_ACTIVATIONS
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import TinyLlava, build_model

Values = dict[str, Any]
_BYTE_LEVEL = Path(__file__).parents[1] / "fixtures/checkpoints/qwen2-siglip-mlp2x-bf16-sharded/model"
_BYTE_LEVEL_FILES = ("vocab.json", "merges.txt", "added_tokens.json")
_BYTE_LEVEL_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
_VOCABULARY = {True: 453, False: 450}  # tokens of the two
_SENTENCEPIECE = ("llama", "gemma", "gemma2", "openelm")


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One checkpoint: its config.json, and how it is stored."""

    seed: int
    config: Values
    processor: Values
    layout: str
    dtype: torch.dtype
    sources: dict[str, Values]  # config.json of what a checkpoint only names

    def __str__(self) -> str:
        text, vision = self.config["text_config"], self.config["vision_config"]
        return (
            f"seed {self.seed}: {self.layout}, {self.dtype}, {text['model_type']}, {vision['model_type']}, "
            f"{self.config['connector_type']}: {json.dumps(self.config)}"
        )


def draw_combination(seed: int, family: str = "") -> Combination:
    """The combination of a seed; of this family of language models, or of a drawn one."""
    rng = random.Random(seed)
    family = family or rng.choice(list(TEXTS))
    text = {"model_type": family, **TEXTS[family](rng)}
    hidden = text.get("hidden_size") or text["model_dim"]
    layout = rng.choice([name for name in LAYOUTS if family in _FAMILIES_OF.get(name, TEXTS)])
    tower = rng.choice(_TOWERS_OF.get(layout, (*DRAWN_TOWERS, "mof")))
    vision = _vision(rng, "clip_vision_model" if tower == "mof" else tower)
    connector = "mof_mlp" if tower == "mof" else rng.choice(_CONNECTORS_OF.get(layout, _CONNECTORS))
    if connector == "identity":
        vision.update(hidden_size=hidden, num_attention_heads=2)
        vision.pop("mlp_ratio", None)
    layers = vision["num_hidden_layers"]
    config = {
        "model_type": "tinyllava",
        "connector_type": connector,
        "image_aspect_ratio": rng.choice(["square", "pad"]),
        "num_queries": rng.randint(1, 9),
        "num_resampler_layers": rng.randint(1, 3),
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": rng.choice([-2, -2, -1, *range(-layers - 1, layers + 1)]),
        "vision_feature_select_strategy": rng.choice(["patch", "cls_patch"]),
        "tokenizer_model_max_length": 512,
        "torch_dtype": "float32",
    }
    sources = {"google-bert/bert-base-uncased": _bert(rng)}
    if tower == "mof":
        second = _vision(rng, "dinov2")
        second.update(hidden_size=vision["hidden_size"], num_attention_heads=vision["num_attention_heads"])
        second.update(num_hidden_layers=layers, patch_size=vision["patch_size"])
        config |= {"vision_model_name_or_path": "mof:a/clip", "vision_model_name_or_path2": "mof:a/dinov2"}
        sources["a/dinov2"] = second
    return Combination(
        seed=seed,
        config=config,
        processor=_processor(rng, vision, shifted=tower == "dinov2"),
        layout=layout,
        dtype=rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
        sources=sources,
    )


def write_combination(folder: Path, made: Combination) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Write a checkpoint and the sources that it names.

    Returns:
        Checkpoint, sources, and the weights by canonical name as reading must give them.
    """
    checkpoint, sources = write_settings(folder, made)
    model = random_model(Checkpoint(checkpoint, sources=sources).config, made.seed)
    stored_rows = made.config["text_config"]["vocab_size"]
    return checkpoint, sources, write_weights(checkpoint, model, made.layout, made.dtype, stored_rows)


def write_settings(folder: Path, made: Combination) -> tuple[Path, Path]:
    """Write a checkpoint without weights, and the sources that it names."""
    checkpoint, sources = folder / "checkpoint", folder / "sources"
    checkpoint.mkdir()
    for name, config in made.sources.items():
        (sources / name).mkdir(parents=True)
        (sources / name / "config.json").write_text(json.dumps(config))
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(made.processor))
    write_tokenizer(checkpoint, made.config["text_config"]["model_type"])
    write_config(checkpoint, made.config, made.layout)
    return checkpoint, sources


def random_model(config: ModelConfig, seed: int) -> TinyLlava:
    """A model whose every parameter is random, with logits neither flat nor peaked."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            is_scale = ("norm" in name and name.endswith("weight")) or "lambda" in name
            zero_centred = config.language.family.norms_around_one and name.startswith("language_model.")
            wide = 0.15 if parameter.ndim < 2 else 1.2 * parameter[0].numel() ** -0.5
            parameter.copy_(float(not zero_centred) + 0.2 * noise if is_scale else wide * noise)
    return model


def write_tokenizer(checkpoint: Path, family: str) -> None:
    """The files of a tokenizer of the family's kind, 450 or 453 tokens."""
    if family in _SENTENCEPIECE:
        for path in TOKENIZER_FOLDER.iterdir():
            shutil.copy(path, checkpoint / path.name)
        if family.startswith("gemma"):
            _rename_end(checkpoint, "<eos>")
        return
    for name in (*_BYTE_LEVEL_FILES, *_BYTE_LEVEL_SETTINGS):
        shutil.copy(_BYTE_LEVEL / name, checkpoint / name)


def _rename_end(checkpoint: Path, end: str) -> None:
    """Gemma ends its answers with a token of another name."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated, untyped
    proto.ParseFromString((checkpoint / "tokenizer.model").read_bytes())
    next(piece for piece in proto.pieces if piece.piece == "</s>").piece = end
    proto.trainer_spec.eos_piece = end
    (checkpoint / "tokenizer.model").write_bytes(proto.SerializeToString())
    for path in checkpoint.glob("*token*.json"):
        path.write_text(path.read_text().replace("</s>", end))


def _vocabulary(rng: random.Random, byte_level: bool) -> int:
    """As many rows as tokens, or padded rows behind them."""
    return _VOCABULARY[byte_level] + rng.choice([0, 0, 1, 59])


def _attention(rng: random.Random, *, grouped: bool = True, even: int = 2) -> Values:
    kv_heads = rng.choice([1, 2, 3])
    heads = kv_heads * (rng.choice([1, 2, 3]) if grouped else 1)
    head_dim = even * rng.randint(16 // even, 40 // even)
    return {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": rng.randint(1, 3),
        "intermediate_size": rng.choice([40, 96, 168]),
        "max_position_embeddings": 1024,
        "rope_theta": rng.choice([1e4, 1e6, 5e5, 1234.5]),
        "hidden_act": "silu",
    }


def _llama(rng: random.Random) -> Values:
    values = {
        **_attention(rng),
        "vocab_size": _vocabulary(rng, False),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-4]),
        "tie_word_embeddings": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.3,
    }
    if rng.random() < 0.4:
        values["head_dim"] = rng.choice([16, 24, 40])
    return values | rng.choice([{}, _linear(rng), _llama3(rng)])


def _linear(rng: random.Random) -> Values:
    return {
        "rope_scaling": {rng.choice(["type", "rope_type"]): "linear", "factor": rng.choice([2, 2.5, 4.0])}
    }


def _llama3(rng: random.Random) -> Values:
    bands = {"low_freq_factor": 1.0, "high_freq_factor": rng.choice([4.0, 8])}
    original = {"original_max_position_embeddings": rng.choice([32, 128])}
    return {"rope_scaling": {"rope_type": "llama3", "factor": rng.choice([8.0, 32.0]), **bands, **original}}


def _qwen2(rng: random.Random) -> Values:
    return {
        **_attention(rng),
        "vocab_size": _vocabulary(rng, True),
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "tie_word_embeddings": rng.random() < 0.5,
        **rng.choice([{}, {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}]),
        **rng.choice([{}, {}, _linear(rng)]),
    }


def _qwen3(rng: random.Random) -> Values:
    return {
        **{key: value for key, value in _qwen2(rng).items() if key != "rope_scaling"},
        "head_dim": rng.choice([16, 32, 40]),
        "hidden_size": rng.choice([48, 64, 90]),  # whatever the heads
        **rng.choice([{}, {"layer_types": ["full_attention"], "sliding_window": None}]),
    }


def _gemma(rng: random.Random) -> Values:
    activation = rng.choice([{"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}, {}])
    return {
        **{key: value for key, value in _attention(rng).items() if key != "hidden_act"},
        **activation,
        "head_dim": rng.choice([16, 32, 40]),
        "vocab_size": _vocabulary(rng, False),
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
    }


def _gemma2(rng: random.Random) -> Values:
    head_dim = rng.choice([16, 32, 40])
    return {
        **{key: value for key, value in _attention(rng).items() if key != "hidden_act"},
        **rng.choice([{}, {"hidden_act": "gelu"}]),  # which nobody reads
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "sliding_window": rng.choice([7, 16, 64]),
        "attn_logit_softcapping": rng.choice([2.0, 50.0]),
        "final_logit_softcapping": rng.choice([3.0, 30.0]),
        "vocab_size": _vocabulary(rng, False),
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
    }


def _smollm3(rng: random.Random) -> Values:
    layers = rng.choice([4, 5])  # the fourth has no RoPE
    values = {key: value for key, value in _qwen2(rng).items() if "window" not in key}
    listed = {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)]}
    ids = {"bos_token_id": None, "eos_token_id": 450}
    return {**values, **ids, "num_hidden_layers": layers, **rng.choice([{}, listed])}


def _phi3(rng: random.Random) -> Values:
    return {
        **_attention(rng, even=8),
        "vocab_size": _vocabulary(rng, True),
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "partial_rotary_factor": rng.choice([0.5, 0.75, 1.0]),
        "tie_word_embeddings": rng.random() < 0.3,
        "sliding_window": rng.choice([None, 512]),
        "eos_token_id": 450,
        "bos_token_id": 450,
    }


def _phi(rng: random.Random) -> Values:
    even, factors = rng.choice([(8, [0.25, 0.5, 0.75, 1.0]), (20, [0.4])])  # RoPE turns pairs
    return {
        **_attention(rng, even=even),
        "hidden_act": "gelu_new",
        "vocab_size": _vocabulary(rng, True),
        "layer_norm_eps": rng.choice([1e-5, 1e-6]),
        "partial_rotary_factor": rng.choice(factors),
        "eos_token_id": 450,
        "bos_token_id": 450,
    }


def _stablelm(rng: random.Random) -> Values:
    return {
        **_attention(rng, even=8),
        "vocab_size": _vocabulary(rng, True),
        "layer_norm_eps": rng.choice([1e-5, 1e-6]),
        "partial_rotary_factor": rng.choice([0.25, 0.5, 1.0]),
        "use_qkv_bias": rng.random() < 0.5,
        "eos_token_id": 450,
        "bos_token_id": 450,
    }


def _openelm(rng: random.Random) -> Values:
    layers, head_dim = rng.randint(1, 3), rng.choice([16, 24])
    kv_heads = [rng.choice([1, 2]) for _ in range(layers)]
    return {
        "model_dim": rng.choice([48, 64, 80]),
        "head_dim": head_dim,
        "num_transformer_layers": layers,
        "num_kv_heads": kv_heads,
        "num_query_heads": [count * rng.choice([1, 2, 3]) for count in kv_heads],
        "ffn_multipliers": [rng.choice([0.5, 1.0, 1.7, 2.5]) for _ in range(layers)],
        "ffn_dim_divisor": 16,
        "rope_freq_constant": rng.choice([10000, 500000]),
        "max_context_length": 1024,
        "vocab_size": _vocabulary(rng, False),
    }


TEXTS = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "phi": _phi,
    "stablelm": _stablelm,
    "openelm": _openelm,
}
DRAWN_TOWERS = ("siglip_vision_model", "clip_vision_model", "dinov2")
_CONNECTORS = (
    *("identity", "linear", "resampler", "qformer"),
    *("mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu", "mlp4x_gelu"),
)
# What the layouts of other codes can hold.
_FAMILIES_OF = {"legacy": LEGACY_FAMILIES, "llava": TEXTS.keys() - {"openelm"}}
_TOWERS_OF = {"legacy": DRAWN_TOWERS[:2], "llava": DRAWN_TOWERS[:2]}
_CONNECTORS_OF = {"legacy": ("identity", "linear", "mlp2x_gelu", "mlp3x_gelu"), "llava": ("mlp2x_gelu",)}


def _vision(rng: random.Random, architecture: str) -> Values:
    heads, patch = rng.choice([1, 2, 4]), rng.choice([7, 14, 16])
    values = {
        "model_type": architecture,
        "hidden_size": heads * rng.choice([12, 18, 20]),
        "num_attention_heads": heads,
        "num_hidden_layers": rng.randint(2, 4),
        "patch_size": patch,
        "image_size": patch * rng.randint(2, 5) + rng.choice([0, 0, 3]),  # a rest at the edge is not used
        "layer_norm_eps": rng.choice([1e-6, 1e-5]),
    }
    if architecture == "dinov2":
        return values | {"mlp_ratio": rng.choice([2, 3, 4]), "image_size": patch * rng.randint(2, 6)}
    return values | {"intermediate_size": rng.choice([40, 72]), "hidden_act": rng.choice(VISION_ACTIVATIONS)}


def _processor(rng: random.Random, vision: Values, *, shifted: bool) -> Values:
    """DINOv2 takes pictures of another size than its position table is for."""
    side = vision["image_size"] if not shifted else vision["patch_size"] * rng.randint(2, 6)
    values: Values = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28], "resample": 3}
    if vision["model_type"] == "siglip_vision_model":
        return values | {"size": {"height": side, "width": side}}
    crop = rng.choice([side, {"height": side, "width": side}])
    size = rng.choice([side, {"shortest_edge": side}, {"shortest_edge": side + 9}])
    return values | {"size": size, "crop_size": crop, "do_center_crop": True}


def _bert(rng: random.Random) -> Values:
    heads = rng.choice([2, 4, 12])
    return {
        "hidden_size": heads * 8,
        "num_attention_heads": heads,
        "num_hidden_layers": rng.randint(1, 4),
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
    }
