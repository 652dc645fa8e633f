"""Damaged tokenizer files, by a seed: `python -m tests.core.tokenizer_damage SEED COUNT`.

Prints what became of COUNT files of each kind; a file that takes longer than `SECONDS` ends its process.
"""

import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny import TOKENIZER_FOLDER, TOKENIZER_VOCAB
from tinyllava_edge.bundle import TOKENIZER_FILE
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError, TinyLlavaEdgeError
from tinyllava_edge.tokenizer_file import open_tokenizer

SECONDS = 20
TEXT = "What is this?  <s> 12345 caf\u00e9 \U0001f600\n\n</s> " + "a" * 200 + " " * 200
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 1 << 31, (1 << 32) - 1, 1 << 64, 0.5, 1e308),
    *(float("nan"), float("inf"), "", " ", "a", "\u2581", "\0", "\ud800", "a" * 5000, "(a+)+$", "(", "<s>"),
    *([], {}, [[]], [None], {"a": 1}),
    *({"Regex": "(a|aa)+$"}, {"String": ""}, {"Regex": "("}, {"type": "Sequence"}, {"type": "Fuse"}),
    {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]},
    {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7},
    {"type": "WordPiece", "vocab": {}, "unk_token": "x", "max_input_chars_per_word": 0},
    {"max_length": 1, "stride": 9, "strategy": "LongestFirst", "direction": "Left"},
    {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0},
)  # fmt: skip


def damaged_tokenizer(chance: random.Random, content: bytes) -> bytes:
    """A tokenizer.json: some values, names or items of it are others, or bytes are."""
    if chance.random() < 0.15:
        return damaged_bytes(chance, content)
    data = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _change(chance, data)
    return json.dumps(data).encode("utf-8")


def damaged_bytes(chance: random.Random, content: bytes) -> bytes:
    """Some bytes are others, missing, there twice, or the end is cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        start = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and start < len(data):
            data[start] = chance.randrange(256)
        elif kind == 1:
            data[start : start + chance.randrange(1, 16)] = b""
        elif kind == 2:
            data[start:start] = data[start : start + chance.randrange(1, 64)]
        elif kind == 3:
            data[start : start + 4] = chance.randbytes(4)
        elif chance.random() < 0.2:
            del data[start:]
    return bytes(data)


def damaged_sentencepiece(chance: random.Random, content: bytes) -> bytes:
    """A tokenizer.model: fields of its protobuf are others, or bytes are."""
    if chance.random() < 0.4:
        return damaged_bytes(chance, content)
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated
    proto.ParseFromString(content)
    for _ in range(chance.choice((1, 1, 2))):
        _change_proto(chance, proto)
    return bytes(proto.SerializeToString())


def _change_proto(chance: random.Random, proto: Any) -> None:
    piece, other = chance.choice(proto.pieces), chance.choice(proto.pieces)
    chance.choice(
        (
            lambda: setattr(piece, "piece", other.piece),
            lambda: setattr(piece, "piece", chance.choice(("", "\u2581" * 5000, "a\0", "<s>", " "))),
            lambda: setattr(piece, "type", chance.choice((1, 2, 3, 4, 5, 6))),
            lambda: setattr(piece, "score", chance.choice((0.0, -1e38, float("nan"), float("inf")))),
            lambda: setattr(
                proto.trainer_spec,
                chance.choice(("bos_id", "eos_id", "unk_id", "pad_id")),
                chance.choice((-1, -5, 0, 1, 3, 419, 420, 1 << 30)),
            ),
            lambda: setattr(proto.trainer_spec, "model_type", chance.choice((1, 2, 3, 4))),
            lambda: proto.pieces.pop(chance.randrange(len(proto.pieces))),
            lambda: proto.pieces.add(piece=other.piece, score=1.0),
            lambda: setattr(proto.normalizer_spec, "name", "nmt_nfkc"),
            lambda: setattr(proto.normalizer_spec, "precompiled_charsmap", chance.randbytes(40)),
        )
    )()


def _change(chance: random.Random, data: Any) -> None:
    """One value, name or item, anywhere in JSON; in the long vocabulary no more often than elsewhere."""
    place = data
    for _ in range(chance.randrange(1, 7)):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key: Any = chance.choice(keys)
        if isinstance(place[key], dict | list) and chance.random() < 0.8:
            place = place[key]
            continue
        kind = chance.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, list):
            place.append(place[key])
        elif kind == 1:
            place[str(chance.choice(_VALUES))] = place[key]
        elif kind == 2:
            place[key] = place[chance.choice(keys)] if chance.random() < 0.9 else chance.choice(keys)
        elif kind == 3 and type(place[key]) is int:
            place[key] += chance.choice((-1, 1, 1000, 1 << 20, 1 << 32))
        else:
            place[key] = chance.choice(_VALUES)
        return


def read_bundle_tokenizer(content: bytes, folder: Path) -> None:
    """As a bundle's: open, encode, decode."""
    from tinyllava_edge.prompt import TextTokenizer
    from tinyllava_edge.tokenizer_file import check_tokenizer

    path = folder / "tokenizer.json"
    path.write_bytes(content)
    check_tokenizer(path, 1024)
    tokenizer = TextTokenizer(path.read_text(encoding="utf-8"), bos_id=1, checked=True)
    ids = tokenizer.encode_text(TEXT)
    assert max(ids, default=0) < 1024
    tokenizer.decode([*ids, 1023, *range(300)])


def read_checkpoint_model(content: bytes, folder: Path) -> None:
    """As a checkpoint's: its tokenizer, the ids of a text, and llama.cpp's vocabulary."""
    from tinyllava_edge.export.gguf_vocabulary import build_vocabulary
    from tinyllava_edge.model.tokenizer import read_tokenizer

    if not (folder / "tokenizer_config.json").exists():
        shutil.copytree(TOKENIZER_FOLDER, folder, dirs_exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    assets = read_tokenizer(folder)
    tokenizer = open_tokenizer(assets.tokenizer_json, folder, BundleError)
    tokenizer.decode(tokenizer.encode(TEXT).ids)
    build_vocabulary(assets, TOKENIZER_VOCAB)


Kind = tuple[Callable[[random.Random, bytes], bytes], Callable[[bytes, Path], None], Path]


def kinds() -> dict[str, Kind]:
    """Name -> damage, reader, and the file that is damaged."""
    return {
        "tokenizer.json": (damaged_tokenizer, read_bundle_tokenizer, bundle_path("nano") / TOKENIZER_FILE),
        "tokenizer.model": (
            damaged_sentencepiece,
            read_checkpoint_model,
            TOKENIZER_FOLDER / "tokenizer.model",
        ),
    }


def outcome_of(kind: str, seed: int, index: int, folder: Path) -> tuple[str, str]:
    """What became of one file: "ok", "typed", "traceback" or "panic"; and the message."""
    damage, read, path = kinds()[kind]
    content = damage(random.Random(f"{kind} {seed} {index}"), path.read_bytes())
    try:
        read(content, folder)
    except TinyLlavaEdgeError as error:
        return ("typed" if "\n" not in str(error) else "traceback"), str(error)
    except Exception:  # what must not be
        return "traceback", traceback.format_exc()
    except BaseException:
        return "panic", traceback.format_exc()
    return "ok", ""


def _run(kind: str, seed: int, index: int) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return outcome_of(kind, seed, index, Path(folder))


def main(seed: int, count: int) -> int:
    """Print the outcomes of `count` files of each kind."""
    bad = 0
    for kind in kinds():
        found: Counter[str] = Counter()
        pool = multiprocessing.Pool(1)
        for index in range(count):
            try:
                outcome, detail = pool.apply_async(_run, (kind, seed, index)).get(SECONDS)
            except multiprocessing.TimeoutError:  # or ended by a signal: the pool never answers
                outcome, detail = "hang or signal", ""
                pool.terminate()
                pool = multiprocessing.Pool(1)
            found[outcome] += 1
            if outcome not in ("ok", "typed"):
                bad += 1
                print(kind, seed, index, outcome, detail)  # noqa: T201
        pool.terminate()
        print(kind, "seed", seed, dict(found))  # noqa: T201
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
