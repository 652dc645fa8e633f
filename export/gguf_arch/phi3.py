"""Phi-3 and Phi-4: Llama's layer with q, k and v in one matrix, gate and up in another, there as here.

Names and keys: llama.cpp, src/models/phi3.cpp (LLM_ARCH_PHI3). `attention.sliding_window` is not written:
that graph ignores it (docs/sources/language_models.md#phi-3).
"""

from collections.abc import Mapping

from tinyllava_edge.checkpoint.config import LanguageConfig

from .base import GgufArchitecture, TensorRule
from .decoder import Rules, standard_metadata


def _tensors(config: LanguageConfig) -> Mapping[str, TensorRule]:
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    fused = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    rules = Rules()
    rules.add("model.embed_tokens", "token_embd", vocab, hidden)
    for layer in range(config.num_hidden_layers):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        rules.add(f"{source}.input_layernorm", f"{name}.attn_norm", hidden)
        rules.add(f"{source}.self_attn.qkv_proj", f"{name}.attn_qkv", fused, hidden)
        rules.add(f"{source}.self_attn.o_proj", f"{name}.attn_output", hidden, hidden)
        rules.add(f"{source}.post_attention_layernorm", f"{name}.ffn_norm", hidden)
        rules.add(f"{source}.mlp.gate_up_proj", f"{name}.ffn_up", 2 * inner, hidden)
        rules.add(f"{source}.mlp.down_proj", f"{name}.ffn_down", hidden, inner)
    rules.add("model.norm", "output_norm", hidden)
    if not config.tie_word_embeddings:
        rules.add("lm_head", "output", vocab, hidden)
    return rules.tensors


ARCHITECTURE = GgufArchitecture(metadata=standard_metadata, tensors=_tensors)
