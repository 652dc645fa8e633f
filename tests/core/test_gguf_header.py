"""A GGUF header is believed in nothing: damage of the classes that llama.cpp's tests/test-gguf.cpp makes."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from tests.core.gguf_files import (
    ARRAY,
    F32,
    FLOAT32,
    STRING,
    Gguf,
    string,
    strings,
    tiny_llama,
    uint32,
)
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gguf_header import TENSOR_TYPES, read_gguf_header
from tinyllava_edge.precisions import TENSOR_SNR_DB

EMBEDDING, NORM = "token_embd.weight", "output_norm.weight"  # the first tensor and the last
KEY = "general.name"


def test_a_header_is_what_the_gguf_package_reads() -> None:
    for path in sorted((bundle_path("nano") / "language").iterdir()):
        header, oracle = read_gguf_header(path), gguf.GGUFReader(path)
        expected = {name: entry.contents() for name, entry in oracle.fields.items() if name[:4] != "GGUF"}
        found = {key: entry.value for key, entry in header.entries.items()}
        tokens = found.pop("tokenizer.ggml.tokens")
        assert [token.decode() for token in tokens] == expected.pop("tokenizer.ggml.tokens")
        assert {key: list(v) if isinstance(v, tuple) else v for key, v in found.items()} == expected
        shapes = {t.name: (tuple(map(int, reversed(t.shape))), t.tensor_type.name) for t in oracle.tensors}
        assert {name: tuple(tensor) for name, tensor in header.tensors.items()} == shapes


def test_sizes_of_types_are_ggmls_own_and_every_type_of_export_has_one() -> None:
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))
    assert {name for name, _, _ in TENSOR_TYPES.values()} == set(TENSOR_SNR_DB)


def test_an_alignment_of_its_own_is_obeyed(tmp_path: Path) -> None:
    file = tiny_llama()
    file.set("general.alignment", uint32(256))
    file.alignment = 256
    (tmp_path / "f32.gguf").write_bytes(file.encode())
    assert len(read_gguf_header(tmp_path / "f32.gguf").tensors) == len(file.tensors)
    file.alignment = 32
    (tmp_path / "f32.gguf").write_bytes(file.encode())
    with pytest.raises(
        BundleError, match=r"tensor '.*' at offset \d+; expected \d+, behind the one before it"
    ):
        read_gguf_header(tmp_path / "f32.gguf")


def with_value(kind: int, value: bytes) -> Callable[[Gguf], None]:
    return lambda file: file.set(KEY, (kind, value))


def with_tensor(dimensions: tuple[int, ...], kind: int = F32) -> Callable[[Gguf], None]:
    return lambda file: file.set_tensor(EMBEDDING, dimensions, kind)


def at_offset(name: str, offset: int) -> Callable[[Gguf], None]:
    return lambda file: file.offsets.update({name: offset})


def with_name(name: str) -> Callable[[Gguf], None]:
    return lambda file: file.tensors.append((name, (4,), F32))


def aligned(kind: int, value: bytes) -> Callable[[Gguf], None]:
    return lambda file: file.set("general.alignment", (kind, value))


def set_to(**fields: object) -> Callable[[Gguf], None]:
    return lambda file: vars(file).update(fields)


def array(kind: int, count: int, values: bytes = b"") -> Callable[[Gguf], None]:
    return with_value(ARRAY, struct.pack("<IQ", kind, count) + values)


HUGE = (1 << 64) - 1
CASES: dict[str, tuple[Callable[[Gguf], None], str]] = {
    "another magic": (set_to(magic=b"GGML"), r"begins with b'GGML'; expected b'GGUF'"),
    "version 0": (set_to(version=0), "version 0; expected 2 or 3"),
    "version 1": (set_to(version=1), "version 1; expected 2 or 3"),
    "a version to come": (set_to(version=4), "version 4; expected 2 or 3"),
    "a version of the other byte order": (set_to(version=3 << 24), "version 50331648; expected 2 or 3"),
    "too many keys": (set_to(num_keys=65_537), "65537 keys; expected at most 65536"),
    "more keys than a number holds": (set_to(num_keys=HUGE), f"{HUGE} keys; expected at most"),
    "too many tensors": (set_to(num_tensors=HUGE), f"{HUGE} tensors; expected at most 65536"),
    "more keys than there are": (set_to(num_keys=100), "a key of |is of type|ends within"),
    "more tensors than there are": (set_to(num_tensors=60), "a tensor's name|dimensions|ends within"),
    "a long key": (lambda file: file.set("k" * 65_536, uint32(1)), "a key of 65536 bytes; expected at most"),
    "a key twice": (lambda file: file.entries.append((KEY, uint32(1))), "the key 'general.name' twice"),
    "a type of a value": (with_value(13, b""), "'general.name' is of type 13; expected a type below 13"),
    "a type of an array": (array(99, 1), "'general.name' is of type 99"),
    "an array of arrays": (array(ARRAY, 1), "array of arrays; expected numbers or strings"),
    "a long array": (array(0, 4_000_001), "arrays of .* expected at most 4000000"),
    "an array past the end": (array(10, 4_000_000 - 100), "ends within the array 'general.name'"),
    "strings past the end": (array(STRING, 100_000), "ends within|a string of"),
    "a long string": (with_value(STRING, struct.pack("<Q", (16 << 20) + 1)), "of 16777217 bytes"),
    "a string that wraps": (with_value(STRING, struct.pack("<Q", HUGE)), f"of {HUGE} bytes; expected"),
    "a string past the end": (with_value(STRING, struct.pack("<Q", 1 << 20)), "ends within the value of"),
    "a long string of an array": (array(STRING, 1, struct.pack("<Q", HUGE)), f"a string of {HUGE} bytes in"),
    "a string of an array that is cut": (
        array(STRING, 1, struct.pack("<Q", 1 << 20)),
        "ends within a string",
    ),
    "a text that is no UTF-8": (with_value(STRING, string(b"\xff\xfe")), r"is b'\\xff\\xfe'; expected UTF-8"),
    "a bool of 2": (with_value(7, b"\2"), "'general.name' is the bool 2; expected 0 or 1"),
    "an alignment of 0": (aligned(*uint32(0)), r"an alignment of 0 \(uint32\); expected a power of 2"),
    "an alignment of 33": (aligned(*uint32(33)), r"an alignment of 33 \(uint32\)"),
    "an alignment of 2 MiB": (aligned(*uint32(2 << 20)), r"an alignment of 2097152 \(uint32\)"),
    "an alignment that is no uint32": (aligned(FLOAT32, struct.pack("<f", 32)), r"of 32.0 \(float32"),
    "an alignment that is a list": (aligned(*strings(["32"])), r"alignment of \[b'32'\] \(array of string\)"),
    "a tensor twice": (with_name(NORM), "the tensor 'output_norm.weight' twice; expected it once"),
    "a tensor without a number of values": (with_tensor(()), "has 0 dimensions; expected 1 to 4"),
    "five dimensions": (with_tensor((1, 1, 1, 1, 1)), "has 5 dimensions"),
    "a dimension of 0": (with_tensor((32, 0)), r"of \[32, 0\] values; expected 1 to"),
    "a negative dimension": (with_tensor((32, HUGE)), r"of \[32, 18446744073709551615\] values"),
    "a product that wraps to 0": (with_tensor((1 << 32, 1 << 32)), "values; expected 1 to"),
    "a product that wraps to what is right": (with_tensor(((1 << 62) + 4, 4, 32)), "values; expected 1 to"),
    "a tensor larger than any file": (with_tensor((1 << 30, 1 << 30)), "ends at byte .* expected it inside"),
    "an unknown type of tensor": (with_tensor((32, 16), 4), "is of type 4; expected a type that export"),
    "a type past all": (with_tensor((32, 16), 1 << 31), "is of type 2147483648"),
    "rows that are no multiple of a block": (with_tensor((16, 32), 8), "a multiple of 32 for Q8_0"),
    "a tensor that is not aligned": (at_offset(NORM, 7), "'output_norm.weight' at offset 7; expected"),
    "a tensor over another": (at_offset("blk.0.attn_norm.weight", 0), "at offset 0; expected 2048, behind"),
    "a tensor past the end": (at_offset(NORM, 1 << 40), "at offset 1099511627776; expected"),
    "an offset that wraps": (at_offset(NORM, HUGE - 31), f"at offset {HUGE - 31}; expected"),
    "a first tensor that is not at 0": (at_offset(EMBEDDING, 32), "at offset 32; expected 0"),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_refused_and_named(name: str, tmp_path: Path) -> None:
    damage, message = CASES[name]
    file = tiny_llama()
    damage(file)
    path = tmp_path / "f32.gguf"
    path.write_bytes(file.encode())
    with pytest.raises(BundleError, match=message) as caught:
        read_gguf_header(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 500 + len(str(path))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tiny_llama("q8_0").encode()
    weights = 5 * 32 * 34  # more than the last tensors, so the header is cut too
    path = tmp_path / "q8_0.gguf"
    for kept in [*range(0, len(whole) - weights, 61), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(BundleError, match=r"ends within|inside the file|0 bytes; expected a GGUF"):
            read_gguf_header(path)
