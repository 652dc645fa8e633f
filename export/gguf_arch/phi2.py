"""Phi-1.5 and Phi-2: attention and feed-forward side by side behind one layer norm, biases everywhere.

Names and keys: llama.cpp, src/models/phi2.cpp (LLM_ARCH_PHI2). RoPE turns the first `rotary_dim` values of a
head, the rotate-half way.
"""

from collections.abc import Mapping

from tinyllava_edge.checkpoint.config import LanguageConfig

from .base import GgufArchitecture, TensorRule
from .decoder import Rules, add_attention, standard_metadata


def _tensors(config: LanguageConfig) -> Mapping[str, TensorRule]:
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    rules = Rules()
    rules.add("model.embed_tokens", "token_embd", vocab, hidden)
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add(f"{source}.input_layernorm", f"{name}.attn_norm", hidden, bias=True)
        add_attention(rules, config, layer, bias="qkvo", output="dense")
        rules.add(f"{source}.mlp.fc1", f"{name}.ffn_up", inner, hidden, bias=True)
        rules.add(f"{source}.mlp.fc2", f"{name}.ffn_down", hidden, inner, bias=True)
    rules.add("model.final_layernorm", "output_norm", hidden, bias=True)
    rules.add("lm_head", "output", vocab, hidden, bias=True)
    return rules.tensors


ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=_tensors)
