"""What the families share: the usual decoder, and where its tensors go."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from tinyllava_edge.checkpoint.config import LanguageConfig

from .base import TensorRule


@dataclass
class Rules:
    """Collects the rules of one family in the order of the file."""

    tensors: dict[str, TensorRule] = field(default_factory=dict)

    def add(self, source: str, name: str, *shape: int, bias: bool = False) -> None:
        """A weight, and its bias, of the weight's first dimension."""
        self.tensors[f"{source}.weight"] = TensorRule(name=f"{name}.weight", shape=shape)
        if bias:
            self.tensors[f"{source}.bias"] = TensorRule(name=f"{name}.bias", shape=shape[:1])


def standard_metadata(config: LanguageConfig) -> dict[str, int | float | str]:
    """The keys that llama.cpp reads for every family."""
    values: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rotary_dim,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        values["attention.key_length"] = config.head_dim
        values["attention.value_length"] = config.head_dim
    if config.rope_scaling is not None and config.rope_scaling["rope_type"] == "linear":
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = float(config.rope_scaling["factor"])
    return {**values, config.family.epsilon_key: float(config.norm_eps)}


def standard_tensors(
    config: LanguageConfig,
    *,
    bias: str = "",
    norm_bias: bool = False,
    qk_norm: bool = False,
    post_norms: bool = False,
) -> Mapping[str, TensorRule]:
    """Rules of a decoder of Llama's layers: norm, attention, norm, gated feed-forward.

    Args:
        config: the language model's; a head of its own has a tensor, a tied one has none.
        bias: which of the attention's projections "q", "k", "v", "o" have a bias, such as "qkv".
        norm_bias: whether the norms have one.
        qk_norm: whether each head of the queries and keys is normed before RoPE.
        post_norms: whether what attention and feed-forward give is normed too (Gemma-2).
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    rules = Rules()
    rules.add("model.embed_tokens", "token_embd", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add(f"{source}.input_layernorm", f"{name}.attn_norm", hidden, bias=norm_bias)
        add_attention(rules, config, layer, bias=bias)
        for letter in "qk" if qk_norm else "":
            rules.add(f"{source}.self_attn.{letter}_norm", f"{name}.attn_{letter}_norm", config.head_dim)
        before_ffn = "pre_feedforward_layernorm" if post_norms else "post_attention_layernorm"
        rules.add(f"{source}.{before_ffn}", f"{name}.ffn_norm", hidden, bias=norm_bias)
        if post_norms:
            rules.add(f"{source}.post_attention_layernorm", f"{name}.post_attention_norm", hidden)
            rules.add(f"{source}.post_feedforward_layernorm", f"{name}.post_ffw_norm", hidden)
        rules.add(f"{source}.mlp.gate_proj", f"{name}.ffn_gate", inner, hidden)
        rules.add(f"{source}.mlp.up_proj", f"{name}.ffn_up", inner, hidden)
        rules.add(f"{source}.mlp.down_proj", f"{name}.ffn_down", hidden, inner)
    rules.add("model.norm", "output_norm", hidden, bias=norm_bias)
    if not config.tie_word_embeddings:
        rules.add("lm_head", "output", config.vocab_size, hidden)
    return _whole_norms(rules.tensors) if config.family.norms_around_one else rules.tensors


def _whole_norms(rules: Mapping[str, TensorRule]) -> Mapping[str, TensorRule]:
    """Rules whose norms have weight + 1 in the file; `rules` but for that."""
    return {
        name: replace(rule, convert=_plus_one, restore=_minus_one, tolerance=4e-6)  # of 1 + weight, up to 64
        if name.endswith("norm.weight")
        else rule
        for name, rule in rules.items()
    }


def _plus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight + 1


def _minus_one(weight: torch.Tensor) -> torch.Tensor:
    return weight - 1


def add_attention(
    rules: Rules, config: LanguageConfig, layer: int, *, bias: str, output: str = "o_proj"
) -> None:
    """The four projections of a layer; `output` is transformers' name of the last one."""
    source, name = f"model.layers.{layer}.self_attn", f"blk.{layer}.attn"
    kv_heads = config.num_key_value_heads
    for letter, heads in (("q", config.num_attention_heads), ("k", kv_heads), ("v", kv_heads)):
        rows, columns = heads * config.head_dim, config.hidden_size
        rules.add(f"{source}.{letter}_proj", f"{name}_{letter}", rows, columns, bias=letter in bias)
    columns = config.num_attention_heads * config.head_dim
    rules.add(f"{source}.{output}", f"{name}_output", config.hidden_size, columns, bias="o" in bias)
