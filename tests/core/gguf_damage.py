"""GGUF files damaged at random: each is refused by the check, or llama.cpp loads it in a child.

    python -m tests.core.gguf_damage SEED COUNT [FOLDER]

prints how many had which outcome; with FOLDER, files that ended badly are kept there.
"""

import json
import os
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.core.gguf_files import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    Gguf,
    numbers,
    string,
    strings,
    tiny_llama,
    tiny_spec,
)
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.gguf_check import check_gguf
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.llamacpp import LlamaCppLanguage
from tinyllava_edge.runtimes.threads import limit_openmp_spin

VARIANTS = ("f32", "f16", "q8_0")
HANG_SECONDS = 30.0
# Exit codes of a child; an exception that is not ours is 1, Python's own.
_LOADED, _TYPED = 0, 3
_EDGES = (
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    255,
    512,
    65_536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"))
_TEXTS = (
    b"",
    b"\0",
    b"a",
    b"a b",
    b"<0x0A>",
    b"\xff",
    b"llama",
    b"gpt2",
    b"\xc4\x8a",
    "\u2581".encode(),
    b"x" * 300,
)


def outcomes(seed: int, count: int, keep: Path | None = None) -> Counter[str]:
    """Damage `count` files; call it in a process that has opened no model, as it forks.

    Returns:
        How many were refused; loaded (or refused by llama.cpp in an error of ours: "typed"); or ended in a
        traceback, a signal or a hang.
    """
    limit_openmp_spin()
    import llama_cpp  # noqa: F401 - once, for all children

    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.gguf"
        for index, (variant, data) in enumerate(damaged_files(seed, count)):
            path.write_bytes(data)
            outcome = _outcome(path, variant)
            found[outcome] += 1
            if keep and outcome in ("traceback", "signal", "hang"):
                (keep / f"{outcome}-{seed}-{index}-{variant}.gguf").write_bytes(data)
    return found


def damaged_files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Variants, and files of them that are damaged in one to three places."""
    rng = random.Random(seed)
    for _ in range(count):
        variant = rng.choice(VARIANTS)
        file = tiny_llama(variant, byte_level=rng.random() < 0.5)
        if rng.random() < 0.6:
            for _ in range(rng.randint(1, 2)):
                rng.choice(_PARTS)(file, rng)
            yield variant, file.encode()
        else:
            yield variant, _damage_bytes(file.encode(), rng)


def _damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and numbers of the header changed, or a piece of it cut out, doubled or moved."""
    header = data.index(b"output_norm.weight") + 48
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(header), rng.choice((1, 4, 8, 40))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            changed[at : at + 4] = struct.pack("<I", rng.choice(_EDGES) & 0xFFFFFFFF)
        elif kind == 3:
            changed[at : at + 8] = struct.pack("<Q", rng.choice(_EDGES))
        elif kind == 4:
            changed[at : at + length] = changed[at : at + length] * rng.choice((0, 2))
        else:
            other = rng.randrange(header)
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.05 else changed)


def _change_value(file: Gguf, rng: random.Random) -> None:
    """A number, a text or a list becomes another of the same type."""
    index = rng.randrange(len(file.entries))
    key, (kind, value) = file.entries[index]
    if kind == FLOAT32:
        value = struct.pack("<f", rng.choice(_FLOATS))
    elif kind == STRING:
        value = string(rng.choice(_TEXTS))
    elif kind == ARRAY:
        kind, value = _changed_array(value, rng)
    else:
        value = (rng.choice(_EDGES) & ((1 << 8 * len(value)) - 1)).to_bytes(len(value), "little")
    file.entries[index] = key, (kind, value)


def _changed_array(value: bytes, rng: random.Random) -> tuple[int, bytes]:
    inner, count = struct.unpack_from("<IQ", value)
    if inner == STRING:
        texts, at = [], 12
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", value, at)
            texts.append(value[at + 8 : at + 8 + length])
            at += 8 + length
        _change_list(texts, [*_TEXTS, *texts], rng)
        return strings(texts)
    code = {INT32: "i", FLOAT32: "f"}[inner]
    values = list(struct.unpack_from(f"<{count}{code}", value, 12))
    _change_list(values, list(_FLOATS if inner == FLOAT32 else (-1, 0, 1, 2, 3, 4, 5, 6, 7, 1 << 30)), rng)
    return numbers(inner, values)


def _change_list(values: list[Any], others: list[Any], rng: random.Random) -> None:
    action = rng.randrange(4)
    if action == 0 and values:
        values.pop(rng.randrange(len(values)))
    elif action == 1:
        values.insert(rng.randrange(len(values) + 1), rng.choice(others))
    elif values:
        for _ in range(rng.randint(1, 3)):
            values[rng.randrange(len(values))] = rng.choice(others)


def _change_kind(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.entries))
    key, (_, value) = file.entries[index]
    file.entries[index] = key, (rng.randrange(14), value)


def _change_keys(file: Gguf, rng: random.Random) -> None:
    """One is missing, there twice, of another name or behind the others, or there is one more."""
    index = rng.randrange(len(file.entries))
    key, value = file.entries[index]
    changed = [
        [],
        [(key, value)] * 2,
        [(rng.choice(_KEYS), value)],
        [(key, value), (rng.choice(_KEYS), value)],
    ]
    file.entries[index : index + 1] = rng.choice(changed)
    if rng.random() < 0.3:
        rng.shuffle(file.entries)


def _change_tensor(file: Gguf, rng: random.Random) -> None:
    index = rng.randrange(len(file.tensors))
    name, dimensions, kind = file.tensors[index]
    action = rng.randrange(5)
    if action == 0:
        name = rng.choice([*_TENSOR_NAMES, file.tensors[rng.randrange(len(file.tensors))][0]])
    elif action == 1:
        dimensions = tuple(
            rng.choice((1, 16, 32, 33, 64, 1 << 31, 1 << 62, (1 << 64) - 1)) for _ in range(rng.randint(1, 5))
        )
    elif action == 2:
        kind = rng.choice((0, 1, 2, 4, 8, 12, 30, 31, 39, 40, 255))
    elif action == 3:
        file.offsets[name] = rng.choice((0, 1, 32, 4096, 1 << 40, (1 << 64) - 32))
    else:
        dimensions = dimensions[::-1]
    file.tensors[index] = name, dimensions, kind


def _change_order(file: Gguf, rng: random.Random) -> None:
    """Tensors in another order, one less, or a count that is not theirs."""
    rng.shuffle(file.tensors)
    if rng.random() < 0.3:
        file.tensors.pop()
    if rng.random() < 0.3:
        file.num_tensors = rng.choice((0, 1, len(file.tensors) - 1, len(file.tensors) + 1, 1 << 40))


_PARTS: tuple[Callable[[Gguf, random.Random], None], ...] = (
    *(_change_value,) * 4,
    *(_change_kind, _change_keys, _change_tensor, _change_order),
)
_KEYS = (
    *("general.alignment", "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.expert_count"),
    *("split.count", "split.no", "llama.attention.key_length", "llama.attention.sliding_window"),
    *("tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.padding_token_id", "general.architecture"),
)
_TENSOR_NAMES = (
    "output.weight",
    "blk.0.attn_q.bias",
    "blk.0.attn_qkv.weight",
    "blk.1.attn_q.weight",
    "rope_freqs.weight",
)


def _outcome(path: Path, variant: str) -> str:
    try:
        check_gguf(path, variant, tiny_spec())
    except TinyLlavaEdgeError:
        return "refused"
    except Exception:
        return "traceback"
    child = os.fork()
    if not child:
        os._exit(_load(path))
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return "signal" if code < 0 else {_LOADED: "loaded", _TYPED: "typed"}.get(code, "traceback")
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hang"


def _load(path: Path) -> int:
    """Load a file and compute with it."""
    spec = tiny_spec()
    try:
        model = LlamaCppLanguage(path, spec, BackendOptions(context_length=8, threads=1), name="damaged")
        model.evaluate(np.arange(4, dtype=np.int32), 0)
        model.last_logits()
        model.close()
    except TinyLlavaEdgeError:
        return _TYPED
    except BaseException:
        return 1
    return _LOADED


if __name__ == "__main__":
    arguments = sys.argv[1:]
    kept = Path(arguments[2]) if len(arguments) > 2 else None
    print(json.dumps(outcomes(int(arguments[0]), int(arguments[1]), kept)))  # noqa: T201
