"""A GGUF file that is not what the manifest says, or says more than export does, never reaches llama.cpp."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.core.gguf_files import (
    F16,
    FLOAT32,
    INT32,
    Gguf,
    float32,
    numbers,
    strings,
    text,
    tiny_llama,
    tiny_spec,
    uint32,
)
from tests.core.small_bundle import change_manifest, file_entry, write_small_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gguf_check import check_gguf
from tinyllava_edge.precisions import matrix_types

ROOT = Path(__file__).parents[2]
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("byte_level", [False, True])
@pytest.mark.parametrize("variant", ["f32", "f16", "q8_0"])
def test_what_export_writes_passes(variant: str, byte_level: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(tiny_llama(variant, byte_level=byte_level).encode())
    check_gguf(path, variant, tiny_spec())


def with_key(key: str, value: tuple[int, bytes]) -> Callable[[Gguf], None]:
    return lambda file: file.set(key, value)


def own(name: str, value: tuple[int, bytes]) -> Callable[[Gguf], None]:
    return with_key(f"llama.{name}", value)


def ggml(name: str, value: tuple[int, bytes]) -> Callable[[Gguf], None]:
    return with_key(f"tokenizer.ggml.{name}", value)


def without(key: str) -> Callable[[Gguf], None]:
    return lambda file: file.drop(key)


def with_tensor(name: str, dimensions: tuple[int, ...], kind: int = 0) -> Callable[[Gguf], None]:
    return lambda file: file.set_tensor(name, dimensions, kind)


def without_tensor(name: str) -> Callable[[Gguf], None]:
    return lambda file: file.tensors.remove(next(t for t in file.tensors if t[0] == name))


def tokens(*last: str | bytes, count: int = 16) -> tuple[int, bytes]:
    names = [f"token{index}".encode() for index in range(count - len(last))]
    return strings([*names, *(t.encode() if isinstance(t, str) else t for t in last)])


LLAMA_CASES: dict[str, tuple[Callable[[Gguf], None], str]] = {
    "another architecture": (with_key("general.architecture", text("mamba")), r"'mamba'.*expected .*'llama'"),
    "no architecture": (without("general.architecture"), r"the architecture is \(\)"),
    "an architecture that is a number": (with_key("general.architecture", uint32(1)), r"\('uint32', 1\)"),
    "RoPE scaled": (
        own("rope.scaling.attn_factor", float32(4)),
        "attn_factor' of type float32; .*only",
    ),
    "RoPE scaled by half of the keys": (
        own("rope.scaling.factor", float32(4)),
        "rope.scaling.type is None; expected linear",
    ),
    "RoPE scaled another way": (
        own("rope.scaling.type", text("yarn")),
        "rope.scaling.type is 'yarn'; expected linear",
    ),
    "divisors of RoPE of another number": (
        with_tensor("rope_freqs.weight", (7,)),
        r"rope_freqs.weight is \[7\]; expected \[8\]",
    ),
    "a file of several": (
        with_key("split.count", (2, b"\2\0")),
        "'split.count' of type uint16; expected only",
    ),
    "an adapter": (with_key("adapter.type", text("lora")), "the key 'adapter.type'"),
    "experts": (own("expert_count", uint32(8)), "the key 'llama.expert_count'"),
    "a key of another architecture": (with_key("phi2.block_count", uint32(1)), "the key 'phi2.block_count'"),
    "a number of another type": (
        own("block_count", float32(1)),
        "block_count' of type float32; expected uint32",
    ),
    "a list for a number": (
        own("attention.head_count", numbers(INT32, [2])),
        "array of int32; expected uint32",
    ),
    "no number of layers": (without("llama.block_count"), "no key llama.block_count; expected one"),
    "no epsilon": (
        without("llama.attention.layer_norm_rms_epsilon"),
        "no key llama.attention.layer_norm_rms",
    ),
    "no base of RoPE": (without("llama.rope.freq_base"), "no key llama.rope.freq_base"),
    "another width": (
        own("embedding_length", uint32(64)),
        "embedding_length is 64; expected 32, as the manifest",
    ),
    "another vocabulary": (own("vocab_size", uint32(17)), "llama.vocab_size is 17; expected 16"),
    "more layers": (own("block_count", uint32(2)), "llama.block_count is 2; expected 1"),
    "more heads": (own("attention.head_count", uint32(4)), "head_count is 4; expected 2"),
    "no heads": (own("attention.head_count", uint32(0)), "head_count is 0; expected 2"),
    "more key-value heads": (own("attention.head_count_kv", uint32(2)), "head_count_kv is 2; expected 1"),
    "another size of a head": (own("attention.key_length", uint32(8)), "key_length is 8; expected 16"),
    "a shorter context": (own("context_length", uint32(63)), "context_length is 63; expected 64"),
    "an absurd context": (
        own("context_length", uint32(1 << 25)),
        "context_length is 33554432; .*to 16777216",
    ),
    "another width inside": (
        own("feed_forward_length", uint32(64)),
        r"ffn_gate.weight is \[32, 32\].*\[64, 32\]",
    ),
    "RoPE of no value": (own("rope.dimension_count", uint32(0)), "dimension_count is 0; expected an even"),
    "RoPE of 15 values": (own("rope.dimension_count", uint32(15)), "dimension_count is 15"),
    "RoPE of more than a head": (own("rope.dimension_count", uint32(18)), "even number up to a head's 16"),
    "a base of RoPE of 0": (own("rope.freq_base", float32(0)), "freq_base is 0.0; expected a finite"),
    "an endless base of RoPE": (own("rope.freq_base", float32(INF)), "freq_base is inf"),
    "epsilon 0": (own("attention.layer_norm_rms_epsilon", float32(0)), "rms_epsilon is 0.0"),
    "epsilon below 0": (own("attention.layer_norm_rms_epsilon", float32(-1e-5)), "rms_epsilon is -"),
    "epsilon NaN": (own("attention.layer_norm_rms_epsilon", float32(NAN)), "rms_epsilon is nan"),
    "another tokenizer": (ggml("model", text("plamo2")), "model is 'plamo2'; expected llama or gpt2"),
    "another way to split": (ggml("pre", text("gpt-4o")), "pre is 'gpt-4o'; expected default"),
    "tokens that are numbers": (ggml("tokens", numbers(INT32, [1] * 16)), "tokens' of type array of int32"),
    "types that are floats": (ggml("token_type", numbers(FLOAT32, [1.0] * 16)), "of type array of float32"),
    "fewer types": (ggml("token_type", numbers(INT32, [1] * 15)), "token_type has 15 entries; expected 16"),
    "fewer scores": (ggml("scores", numbers(FLOAT32, [0.0])), "scores has 1 entries; expected 16"),
    "no scores": (without("tokenizer.ggml.scores"), "a tokenizer llama without tokenizer.ggml.scores"),
    "scores and merges": (ggml("merges", strings(["a b"])), "scores, or with more"),
    "a score that is NaN": (ggml("scores", numbers(FLOAT32, [*[0.0] * 15, NAN])), "NaN or infinite"),
    "more tokens": (ggml("tokens", tokens(count=17)), "tokens has 17 entries; expected 16"),
    "a token twice": (ggml("tokens", tokens("same", "same")), "tokens has 1 of its tokens twice"),
    "a token of nothing": (ggml("tokens", tokens("")), "an empty string"),
    "a token with a zero": (ggml("tokens", tokens(b"a\0b")), "with a zero byte"),
    "a token that is no UTF-8": (ggml("tokens", tokens(b"\xf0\x28")), r"has b'\\xf0'; expected UTF-8"),
    "a type of tokens": (
        ggml("token_type", numbers(INT32, [*[1] * 15, 7])),
        "has the type 7; expected 1 to 6",
    ),
    "a byte that is none": (ggml("token_type", numbers(INT32, [*[1] * 15, 6])), "the byte b'token15'"),
    "a special id past the end": (
        ggml("eos_token_id", uint32(16)),
        "eos_token_id is 16; expected an id below",
    ),
    "a special id of -1": (ggml("unknown_token_id", uint32((1 << 32) - 1)), "unknown_token_id is 4294967295"),
    "a special id of another type": (ggml("bos_token_id", (INT32, b"\1\0\0\0")), "of type int32; .* uint32"),
    "a flag that is a number": (ggml("add_bos_token", uint32(1)), "of type uint32; expected bool"),
    "a tensor more": (
        with_tensor("blk.0.attn_q_norm.weight", (16,)),
        "the tensor 'blk.0.attn_q_norm.weight'",
    ),
    "a tensor of a layer more": (
        with_tensor("blk.1.attn_norm.weight", (32,)),
        "'blk.1.attn_norm.weight'; .*llama",
    ),
    "a scale": (with_tensor("blk.0.attn_q.scale", (1,)), "the tensor 'blk.0.attn_q.scale'"),
    "a name with a control character": (with_tensor("out\x1b[0m", (1,)), r"'out\\x1b\[0m'"),
    "no tensor": (without_tensor("blk.0.ffn_up.weight"), "1 tensors are missing, the first is blk.0.ffn_up"),
    "one bias of several": (with_tensor("blk.0.attn_k.bias", (16,)), "3 tensors are missing, .*attn_q.bias"),
    "another shape": (with_tensor("blk.0.attn_k.weight", (32, 32)), r"is \[32, 32\]; expected \[16, 32\]"),
    "a dimension more": (with_tensor("output_norm.weight", (32, 1)), r"output_norm.weight is \[1, 32\]"),
    "more rows than tokens": (
        with_tensor("token_embd.weight", (32, 17)),
        r"is \[17, 32\]; expected \[16, 32\]",
    ),
    "a type that is not the variant's": (
        with_tensor("token_embd.weight", (32, 16), F16),
        "is F16; expected F32",
    ),
    "a norm in half precision": (with_tensor("output_norm.weight", (32,), F16), "is F16; expected F32"),
}
BYTE_LEVEL_CASES: dict[str, tuple[Callable[[Gguf], None], str]] = {
    "a byte": (ggml("token_type", numbers(INT32, [*[1] * 15, 6])), "has the type 6; expected 1 to 5"),
    "no merges": (without("tokenizer.ggml.merges"), "a tokenizer gpt2 without tokenizer.ggml.merges"),
    "merges that are numbers": (
        ggml("merges", numbers(INT32, [1])),
        "of type array of int32; expected array of",
    ),
    "a merge of nothing": (ggml("merges", strings(["a b", ""])), "merges has an empty string"),
    "a merge of one": (ggml("merges", strings(["ab"])), "merges has b'ab'; expected two tokens"),
    "a merge that is no UTF-8": (ggml("merges", strings([b"a \xff"])), "expected UTF-8"),
    "another way to split": (ggml("pre", text("default")), "pre is 'default'; expected gpt-2 or smollm or"),
}
CASES = {("f32", False, name): case for name, case in LLAMA_CASES.items()} | {
    ("f32", True, name): case for name, case in BYTE_LEVEL_CASES.items()
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[2]}{' of bytes' * case[1]}")
def test_what_export_does_not_write_is_refused(case: tuple[str, bool, str], tmp_path: Path) -> None:
    (variant, byte_level, _), (damage, message) = case, CASES[case]
    file = tiny_llama(variant, byte_level=byte_level)
    damage(file)
    path = tmp_path / "f32.gguf"
    path.write_bytes(file.encode())
    with pytest.raises(BundleError, match=message) as caught:
        check_gguf(path, variant, tiny_spec())
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("f32", {"architecture": "phi"}, "'llama'.*; expected .*'phi2'.*manifest says of phi"),
        ("f32", {"architecture": "mamba"}, "the manifest's family is 'mamba'.*expected one of llama, qwen2"),
        ("f64", {}, "the variant 'f64'; expected one of .* and f32, f16"),
        ("q8_0", {}, "token_embd.weight is F32; expected BF16, F16, Q8_0 in"),
        ("f32", {"head_dim": 8}, "no key llama.attention.key_length"),
        ("f32", {"num_key_value_heads": 2}, "head_count_kv is 1; expected 2, as the manifest"),
        ("f32", {"context_length": 65}, "context_length is 64; expected 65"),
    ],
)
def test_a_manifest_of_another_model_is_refused(
    variant: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "f32.gguf").write_bytes(tiny_llama().encode())
    with pytest.raises(BundleError, match=message):
        check_gguf(tmp_path / "f32.gguf", variant, tiny_spec().model_copy(update=change))


def test_513_layers_are_refused_though_both_say_so(tmp_path: Path) -> None:
    (tmp_path / "f32.gguf").write_bytes(tiny_llama(layers=513, hidden=4).encode())
    with pytest.raises(BundleError, match="block_count is 513; expected at most 512"):
        check_gguf(tmp_path / "f32.gguf", "f32", tiny_spec(layers=513, hidden=4))


def test_a_variant_may_hold_its_type_and_more_precise_ones() -> None:
    assert matrix_types("f32") == {"F32"}
    assert matrix_types("f16") == {"F16"}
    assert matrix_types("bf16") == {"F16", "BF16"}
    assert matrix_types("q8_0") == {"F16", "Q8_0", "BF16"}
    assert {"Q4_K", "Q6_K", "Q5_0", "Q8_0", "F16"} <= matrix_types("q4_k_m")
    assert not {"Q3_K", "IQ3_S", "Q2_K", "TQ1_0", "F32"} & matrix_types("q4_k_s")
    assert {"IQ3_S", "Q4_K", "IQ4_NL"} <= matrix_types("iq3_m")


def test_a_bundle_whose_file_was_changed_with_its_hash_does_not_open(tmp_path: Path) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    file = tiny_llama("f16", vocab=500, hidden=16)
    file.set("llama.expert_count", uint32(8))
    content = file.encode()
    (root / "language/f16.gguf").write_bytes(content)

    def seal_again(manifest: dict[str, Any]) -> None:
        entries = [entry for entry in manifest["files"] if entry["path"] != "language/f16.gguf"]
        manifest["files"] = [*entries, file_entry("language/f16.gguf", content)]

    change_manifest(root, seal_again)
    with pytest.raises(BundleError, match=r"f16\.gguf: the key 'llama.expert_count'"):
        Bundle.open(root)


def test_reading_is_quick(tmp_path: Path) -> None:
    """Nano's header takes 1 ms and one of 152,000 tokens .2 s; the bounds leave room for a busy machine."""
    nano = Bundle.open(bundle_path("nano"))
    started = time.process_time()
    for _ in range(10):
        check_gguf(nano.path("language/q8_0.gguf"), "q8_0", nano.manifest.language)
    assert (time.process_time() - started) / 10 < 0.01
    size = {"vocab": 152_000, "hidden": 4}
    file = tiny_llama("f16", **size, byte_level=True)
    file.set("tokenizer.ggml.merges", strings([f"t{index} o" for index in range(151_000)]))
    (tmp_path / "f16.gguf").write_bytes(file.encode())
    started = time.process_time()
    check_gguf(tmp_path / "f16.gguf", "f16", tiny_spec(**size))
    assert time.process_time() - started < 2


def test_damaged_files_are_refused_or_load_without_a_signal() -> None:
    """In a process of its own: what forks must not have computed with OpenMP."""
    command = [sys.executable, "-m", "tests.core.gguf_damage", "0", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    outcomes = json.loads(done.stdout)
    assert sum(outcomes.values()) == 200
    assert outcomes["refused"] > 100
    assert outcomes["loaded"] > 5
    assert not {"traceback", "signal", "hang"} & outcomes.keys(), outcomes
