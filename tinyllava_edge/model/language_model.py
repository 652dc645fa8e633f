"""The language model: transformers' causal LM of the family."""

from typing import Any

import transformers
from torch import nn

from tinyllava_edge.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError


def build_language_model(config: LanguageConfig) -> nn.Module:
    """Build a causal language model with random weights.

    Raises:
        UnsupportedModelError: the family is not known; the message lists those that are.
    """
    if config.architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"language model {config.architecture!r} is not supported. Supported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[config.architecture](config)


def _rope(config: LanguageConfig) -> dict[str, Any]:
    """RoPE's base in the words of the installed transformers."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    return {"rope_theta": config.rope_theta}


def _llama(config: LanguageConfig) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            hidden_act=config.hidden_act,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=None,
            **_rope(config),
        )
    )
    return model


FAMILIES = {"llama": _llama}
