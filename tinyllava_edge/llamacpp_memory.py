"""What llama.cpp takes for a model, from the header of its GGUF file: weights, cache, working memory."""

from math import prod

from tinyllava_edge.gguf_header import TENSOR_TYPES, GgufHeader, Tensor
from tinyllava_edge.manifest import LanguageSpec

BATCH = 512  # rows of one llama.cpp call, which sizes its working memory by them
OUTPUT_ROWS = 64  # rows whose logits are kept at once: 512 of a vocabulary of 150,000 would be 297 MiB
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}  # type of the cache -> bytes of a value
DEFAULT_KV_TYPE = "f16"
# Types whose matrices llama.cpp's CPU build lays out anew, beside the file (ggml/src/ggml-cpu/repack.cpp).
_REPACKED = {
    "x86_64": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8},
    "aarch64": {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "IQ4_NL": 4, "Q8_0": 4},
}  # architecture -> type -> rows that a matrix must have a multiple of
_BLOCKS = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}


def suits_cache(spec: LanguageSpec, kv_type: str) -> bool:
    """Whether llama.cpp has such a cache for this model: a block of q8_0 is 32 values of one head."""
    return kv_type != "q8_0" or spec.head_dim % 32 == 0


def kv_bytes(header: GgufHeader, spec: LanguageSpec, *, kv_type: str, context_length: int) -> int:
    """Keys and values of every layer; llama.cpp rounds the positions up to 256."""
    positions = -(-context_length // 256) * 256
    heads = by_layer(header, "attention.head_count_kv")
    values = 2 * sum(heads) * (spec.num_hidden_layers if len(heads) == 1 else 1) * spec.head_dim
    return int(positions * values * KV_BYTES[kv_type])


def scratch_bytes(header: GgufHeader, spec: LanguageSpec, *, kv_type: str, context_length: int) -> int:
    """What llama.cpp reserves for computing one batch: the most that is alive at once, by stage of the graph.

    Without flash attention (f32 cache) the scores of all heads are there at once. Against its own log of 11
    shapes at 3 contexts and 3 types of cache the sum was 0 to 9.4 % higher, never lower.
    """
    rows = min(BATCH, context_length)
    positions = -(-context_length // 256) * 256
    hidden = 4 * rows * spec.hidden_size
    queries = 4 * rows * spec.head_dim * spec.num_attention_heads
    keys = 4 * rows * spec.head_dim * spec.num_key_value_heads
    inner = 4 * rows * max(by_layer(header, "feed_forward_length"))
    flash = kv_type != "f32"
    mask = rows * positions * (2 if flash else 4)
    scores = 0 if flash else 4 * rows * positions * spec.num_attention_heads
    is_gated = "blk.0.ffn_gate.weight" in header.tensors
    feed_forward = 3 * inner + 4 * hidden if is_gated else inner + 5 * hidden
    outputs = 4 * min(OUTPUT_ROWS, rows) * (spec.vocab_size + 2 * spec.hidden_size)
    attention = scores + 2 * queries + 3 * hidden + 2 * keys
    return max(attention + mask, feed_forward + mask, outputs + 2 * hidden)


def tensor_bytes(tensor: Tensor) -> int:
    """Of a tensor in the file."""
    values, size = _BLOCKS[tensor.kind]
    return prod(tensor.shape) // values * size


def by_layer(header: GgufHeader, name: str) -> tuple[int, ...]:
    """A number of each layer, or the one that all have."""
    value = header.entries[f"{header.entries['general.architecture'].value}.{name}"].value
    return value if isinstance(value, tuple) else (value,)


def repacked_bytes(header: GgufHeader, architecture: str) -> int:
    """Of the matrices that a CPU build lays out anew; the table of tokens only where it is the output's."""
    types = _REPACKED.get(architecture, {})
    skipped = {"token_embd.weight"} if "output.weight" in header.tensors else set()
    return sum(
        tensor_bytes(tensor)
        for name, tensor in header.tensors.items()
        if name not in skipped and tensor.kind in types and tensor.shape[0] % types[tensor.kind] == 0
    )
