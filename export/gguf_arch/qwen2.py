"""Qwen2 and Qwen2.5: Llama's layer with biases on q, k and v, and rotate-half RoPE.

Names and keys: llama.cpp, src/models/qwen2.cpp (LLM_ARCH_QWEN2).
"""

from tinyllava_edge.config import LanguageConfig

from .base import GgufArchitecture, TensorRule
from .decoder import (
    Rules,
    add_gated_feed_forward,
    attention_shapes,
    check_activation,
    rms_metadata,
)


def _metadata(config: LanguageConfig) -> dict[str, int | float]:
    check_activation(config, "silu")
    return rms_metadata(config)


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes = attention_shapes(config)
    rules = Rules()
    rules.add("model.embed_tokens.weight", "token_embd.weight", (vocab, hidden))
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add(f"{source}.input_layernorm.weight", f"{name}.attn_norm.weight", (hidden,))
        for letter in "qkv":
            projection = f"{letter}_proj"
            rules.add_pair(f"{source}.self_attn.{projection}", f"{name}.attn_{letter}", shapes[projection])
        rules.add(f"{source}.self_attn.o_proj.weight", f"{name}.attn_output.weight", shapes["o_proj"])
        rules.add(f"{source}.post_attention_layernorm.weight", f"{name}.ffn_norm.weight", (hidden,))
        add_gated_feed_forward(rules, config, layer)
    rules.add("model.norm.weight", "output_norm.weight", (hidden,))
    if not config.tie_word_embeddings:
        rules.add("lm_head.weight", "output.weight", (vocab, hidden))
    return rules.tensors


ARCHITECTURE = GgufArchitecture(name="qwen2", metadata=_metadata, tensors=_tensors)
