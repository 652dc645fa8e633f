"""What the families share: the usual decoder layer, and where its tensors go."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from tinyllava_edge.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import TensorRule

Convert = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Rules:
    """Collects the rules of one family in the order of the file."""

    tensors: dict[str, TensorRule] = field(default_factory=dict)

    def add(self, source: str, name: str, shape: tuple[int, ...], **converts: Convert) -> None:
        """One tensor; `converts` are a rule's `convert` and `restore`, both exact."""
        rule = TensorRule(name=name, shape=shape)
        self.tensors[source] = replace(rule, **converts) if converts else rule  # type: ignore[arg-type]

    def add_weight(self, source: str, name: str, shape: tuple[int, ...], **converts: Convert) -> None:
        """A weight without a bias."""
        self.add(f"{source}.weight", f"{name}.weight", shape, **converts)

    def add_pair(self, source: str, name: str, shape: tuple[int, ...], **converts: Convert) -> None:
        """A weight and its bias, of the weight's first dimension."""
        self.add_weight(source, name, shape, **converts)
        self.add(f"{source}.bias", f"{name}.bias", shape[:1], **converts)


def common_metadata(config: LanguageConfig) -> dict[str, int | float]:
    """The keys that llama.cpp reads for every family, but for the norm's epsilon."""
    values: dict[str, int | float] = {
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
    return values


def rms_metadata(config: LanguageConfig) -> dict[str, int | float]:
    """Common keys of a family with RMS norms."""
    return {**common_metadata(config), "attention.layer_norm_rms_epsilon": float(config.norm_eps)}


def layer_norm_metadata(config: LanguageConfig) -> dict[str, int | float]:
    """Common keys of a family with layer norms."""
    return {**common_metadata(config), "attention.layer_norm_epsilon": float(config.norm_eps)}


def attention_shapes(config: LanguageConfig) -> dict[str, tuple[int, int]]:
    """Shape of each projection of the attention, by transformers' name."""
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    hidden = config.hidden_size
    return {
        "q_proj": (q_size, hidden),
        "k_proj": (kv_size, hidden),
        "v_proj": (kv_size, hidden),
        "o_proj": (hidden, q_size),
    }


def add_gated_feed_forward(rules: Rules, config: LanguageConfig, layer: int) -> None:
    """The three matrices of a gated feed-forward."""
    hidden, inner = config.hidden_size, config.intermediate_size
    for source, name, shape in (
        ("gate_proj", "ffn_gate", (inner, hidden)),
        ("up_proj", "ffn_up", (inner, hidden)),
        ("down_proj", "ffn_down", (hidden, inner)),
    ):
        rules.add(f"model.layers.{layer}.mlp.{source}.weight", f"blk.{layer}.{name}.weight", shape)


def check_activation(config: LanguageConfig, *known: str) -> None:
    """Refuse an activation that llama.cpp's graph of the family does not compute.

    Raises:
        UnsupportedModelError: it is another one.
    """
    found = config.values["hidden_act"]
    if found not in known:
        raise UnsupportedModelError(
            f"text_config.hidden_act is {found!r}; llama.cpp's {config.architecture} graph computes only "
            f"{', '.join(known)}."
        )
