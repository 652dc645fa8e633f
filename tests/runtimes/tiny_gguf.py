"""A random Llama as GGUF, written with the gguf package alone: llama.cpp without our exporter."""

from pathlib import Path

import gguf
import numpy as np

from tinyllava_edge.bundle import LanguageSpec


def write_tiny_gguf(
    path: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    vocab: int = 300,
    context: int = 1024,
    seed: int = 0,
) -> tuple[LanguageSpec, np.ndarray]:
    """Write the file; returns its facts and its token embeddings [vocab, hidden]."""
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"token{i}".encode() for i in range(vocab)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * vocab)

    def add(name: str, *shape: int, norm: bool = False) -> np.ndarray:
        noise = generator.standard_normal(shape, dtype=np.float32)
        values = (1 + 0.1 * noise if norm else 0.1 * noise).astype(np.float32)
        writer.add_tensor(name, values)
        return values

    embeddings = add("token_embd.weight", vocab, hidden)
    add("output_norm.weight", hidden, norm=True)
    add("output.weight", vocab, hidden)
    for block in (f"blk.{layer}" for layer in range(layers)):
        add(f"{block}.attn_norm.weight", hidden, norm=True)
        add(f"{block}.attn_q.weight", heads * head_dim, hidden)
        add(f"{block}.attn_k.weight", kv_heads * head_dim, hidden)
        add(f"{block}.attn_v.weight", kv_heads * head_dim, hidden)
        add(f"{block}.attn_output.weight", hidden, heads * head_dim)
        add(f"{block}.ffn_norm.weight", hidden, norm=True)
        add(f"{block}.ffn_gate.weight", intermediate, hidden)
        add(f"{block}.ffn_up.weight", intermediate, hidden)
        add(f"{block}.ffn_down.weight", hidden, intermediate)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    spec = LanguageSpec(
        architecture="llama",
        hidden_size=hidden,
        vocab_size=vocab,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        context_length=context,
    )
    return spec, embeddings
