"""GGUF files made by hand, byte for byte, so that any part of one can be wrong."""

import struct
from dataclasses import dataclass, field
from math import prod

from tinyllava_edge.manifest import LanguageSpec

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
F32, F16, Q8_0 = 0, 1, 8
_BLOCKS = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34)}
_TYPE_OF = {"f32": F32, "f16": F16, "q8_0": Q8_0}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def uint32(value: int) -> tuple[int, bytes]:
    return UINT32, struct.pack("<I", value)


def float32(value: float) -> tuple[int, bytes]:
    return FLOAT32, struct.pack("<f", value)


def text(value: str | bytes) -> tuple[int, bytes]:
    return STRING, string(value)


def strings(values: list[str] | list[bytes]) -> tuple[int, bytes]:
    return ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(string, values))


def numbers(kind: int, values: list[int] | list[float]) -> tuple[int, bytes]:
    code = {INT32: "i", FLOAT32: "f", UINT32: "I"}[kind]
    return ARRAY, struct.pack(f"<IQ{len(values)}{code}", kind, len(values), *values)


@dataclass
class Gguf:
    """The parts of a file; what is counted, and where tensors lie, is computed where it is not given.

    Attributes:
        entries: key, and type and bytes of its value.
        tensors: name, dimensions (innermost first) and type.
        offsets: of tensors that do not lie where they should.
    """

    entries: list[tuple[str, tuple[int, bytes]]]
    tensors: list[tuple[str, tuple[int, ...], int]]
    offsets: dict[str, int] = field(default_factory=dict)
    magic: bytes = b"GGUF"
    version: int = 3
    num_keys: int | None = None
    num_tensors: int | None = None
    alignment: int = 32

    def set(self, key: str, value: tuple[int, bytes]) -> None:
        """Give a key, new or there already, a value."""
        self.entries = [*((k, v) for k, v in self.entries if k != key), (key, value)]

    def drop(self, key: str) -> None:
        self.entries = [(k, v) for k, v in self.entries if k != key]

    def set_tensor(self, name: str, dimensions: tuple[int, ...], kind: int = F32) -> None:
        """Give a tensor, new or there already, a shape and a type."""
        names = [tensor[0] for tensor in self.tensors]
        index = names.index(name) if name in names else len(names)
        self.tensors[index : index + 1] = [(name, dimensions, kind)]

    def encode(self) -> bytes:
        """The file, every weight zero."""
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.entries) if self.num_keys is None else self.num_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, num_tensors, num_keys)]
        for key, (kind, value) in self.entries:
            parts += [string(key), struct.pack("<I", kind), value]
        offset = 0
        for name, dimensions, kind in self.tensors:
            place = self.offsets.get(name, offset)
            parts += [string(name), struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)]
            parts += [struct.pack("<IQ", kind, place)]
            block, size = _BLOCKS.get(kind, (1, 1))
            offset = self._aligned(offset + min(prod(dimensions), 1 << 20) // block * size)
        header = b"".join(parts)
        return header.ljust(self._aligned(len(header)), b"\0") + bytes(offset)

    def _aligned(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment


def tiny_llama(
    variant: str = "f32", *, vocab: int = 16, hidden: int = 32, layers: int = 1, byte_level: bool = False
) -> Gguf:
    """A llama of two heads as export would write it, some 30 KB or less; `tiny_spec` says what it is."""
    numbers_of = {
        "vocab_size": vocab,
        "context_length": 64,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": hidden,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "rope.dimension_count": hidden // 2,
    }
    tokens = ["<unk>", "<s>", "</s>", *(f"token{index}" for index in range(3, vocab))]
    entries = [
        ("general.architecture", text("llama")),
        ("general.type", text("model")),
        ("general.name", text("tiny")),
        ("general.file_type", uint32(0)),
        *((f"llama.{key}", uint32(value)) for key, value in numbers_of.items()),
        ("llama.rope.freq_base", float32(10000)),
        ("llama.attention.layer_norm_rms_epsilon", float32(1e-5)),
        ("tokenizer.ggml.model", text("gpt2" if byte_level else "llama")),
        ("tokenizer.ggml.pre", text("gpt-2" if byte_level else "default")),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.token_type", numbers(INT32, [2, 3, 3, *[1] * (vocab - 3)])),
        ("tokenizer.ggml.bos_token_id", uint32(1)),
        ("tokenizer.ggml.eos_token_id", uint32(2)),
        ("tokenizer.ggml.add_bos_token", (BOOL, b"\1")),
        ("tokenizer.chat_template", text("{{ messages }}")),
    ]
    if byte_level:
        entries.append(("tokenizer.ggml.merges", strings(["t o", "to k"])))
    else:
        entries.append(("tokenizer.ggml.scores", numbers(FLOAT32, [0.0] * vocab)))
    kind = _TYPE_OF[variant]
    tensors: list[tuple[str, tuple[int, ...], int]] = [("token_embd.weight", (hidden, vocab), kind)]
    for block in (f"blk.{layer}" for layer in range(layers)):
        tensors += [
            (f"{block}.attn_norm.weight", (hidden,), F32),
            (f"{block}.attn_q.weight", (hidden, hidden), kind),
            (f"{block}.attn_k.weight", (hidden, hidden // 2), kind),
            (f"{block}.attn_v.weight", (hidden, hidden // 2), kind),
            (f"{block}.attn_output.weight", (hidden, hidden), kind),
            (f"{block}.ffn_norm.weight", (hidden,), F32),
            (f"{block}.ffn_gate.weight", (hidden, hidden), kind),
            (f"{block}.ffn_up.weight", (hidden, hidden), kind),
            (f"{block}.ffn_down.weight", (hidden, hidden), kind),
        ]
    tensors.append(("output_norm.weight", (hidden,), F32))
    return Gguf(entries, tensors)


def tiny_spec(*, vocab: int = 16, hidden: int = 32, layers: int = 1) -> LanguageSpec:
    """What a manifest says of `tiny_llama`."""
    return LanguageSpec(
        architecture="llama",
        hidden_size=hidden,
        vocab_size=vocab,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden // 2,
        context_length=64,
    )
