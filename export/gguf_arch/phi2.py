"""Phi-1.5 and Phi-2: attention and feed-forward side by side behind one layer norm, biases everywhere.

Names and keys: llama.cpp, src/models/phi2.cpp (LLM_ARCH_PHI2). RoPE turns the first `rotary_dim` values of a
head, the rotate-half way. llama.cpp computes GELU from a float16 table.
"""

from tinyllava_edge.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import GgufArchitecture, TensorRule
from .decoder import Rules, attention_shapes, check_activation, layer_norm_metadata


def _metadata(config: LanguageConfig) -> dict[str, int | float]:
    check_activation(config, "gelu_new", "gelu_pytorch_tanh")
    if config.tie_word_embeddings:
        raise UnsupportedModelError(
            "text_config: llama.cpp's phi2 graph needs a head of its own, not a tied one."
        )
    return layer_norm_metadata(config)


def _tensors(config: LanguageConfig) -> dict[str, TensorRule]:
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes = attention_shapes(config)
    rules = Rules()
    rules.add("model.embed_tokens.weight", "token_embd.weight", (vocab, hidden))
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add_pair(f"{source}.input_layernorm", f"{name}.attn_norm", (hidden,))
        for letter in "qkv":
            projection = f"{letter}_proj"
            rules.add_pair(f"{source}.self_attn.{projection}", f"{name}.attn_{letter}", shapes[projection])
        rules.add_pair(f"{source}.self_attn.dense", f"{name}.attn_output", shapes["o_proj"])
        rules.add_pair(f"{source}.mlp.fc1", f"{name}.ffn_up", (inner, hidden))
        rules.add_pair(f"{source}.mlp.fc2", f"{name}.ffn_down", (hidden, inner))
    rules.add_pair("model.final_layernorm", "output_norm", (hidden,))
    rules.add_pair("lm_head", "output", (vocab, hidden))
    return rules.tensors


ARCHITECTURE = GgufArchitecture(name="phi2", metadata=_metadata, tensors=_tensors)
