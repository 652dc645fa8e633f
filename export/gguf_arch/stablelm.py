"""StableLM-2: Llama's layer with layer norms, biases on q, k and v, and RoPE on a part of each head.

Names and keys: llama.cpp, src/models/stablelm.cpp (LLM_ARCH_STABLELM).
"""

from tinyllava_edge.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import GgufArchitecture, TensorRule
from .decoder import (
    Rules,
    add_gated_feed_forward,
    attention_shapes,
    check_activation,
    layer_norm_metadata,
)


def _metadata(config: LanguageConfig) -> dict[str, int | float]:
    check_activation(config, "silu")
    if config.tie_word_embeddings:
        raise UnsupportedModelError(
            "text_config: llama.cpp's stablelm graph needs a head of its own, not a tied one."
        )
    return layer_norm_metadata(config)


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes = attention_shapes(config)
    rules = Rules()
    add_projection = rules.add_pair if config.values["use_qkv_bias"] else rules.add_weight
    rules.add("model.embed_tokens.weight", "token_embd.weight", (vocab, hidden))
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add_pair(f"{source}.input_layernorm", f"{name}.attn_norm", (hidden,))
        for letter in "qkv":
            projection = f"{letter}_proj"
            add_projection(f"{source}.self_attn.{projection}", f"{name}.attn_{letter}", shapes[projection])
        rules.add_weight(f"{source}.self_attn.o_proj", f"{name}.attn_output", shapes["o_proj"])
        rules.add_pair(f"{source}.post_attention_layernorm", f"{name}.ffn_norm", (hidden,))
        add_gated_feed_forward(rules, config, layer)
    rules.add_pair("model.norm", "output_norm", (hidden,))
    rules.add_weight("lm_head", "output", (vocab, hidden))
    return rules.tensors


ARCHITECTURE = GgufArchitecture(name="stablelm", metadata=_metadata, tensors=_tensors)
