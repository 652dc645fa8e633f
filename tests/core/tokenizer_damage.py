"""Damaged tokenizer files, read as a bundle's and as a checkpoint's are; `make fuzz` has more of them."""

import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.damage_bytes import Damage
from tests.fuzz.damage_json import json_damaged
from tests.fuzz.damage_models import sentencepiece_damaged
from tests.tiny import TOKENIZER_FOLDER, TOKENIZER_VOCAB
from tinyllava_edge.bundle import TOKENIZER_FILE
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError, TinyLlavaEdgeError
from tinyllava_edge.tokenizer_file import open_tokenizer

TEXT = "What is this?  <s> 12345 caf\u00e9 \U0001f600\n\n</s> " + "a" * 200 + " " * 200


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


Kind = tuple[Damage, Callable[[bytes, Path], None], Path]


def kinds() -> dict[str, Kind]:
    """Name -> damage, reader, and the file that is damaged."""
    return {
        "tokenizer.json": (json_damaged, read_bundle_tokenizer, bundle_path("nano") / TOKENIZER_FILE),
        "tokenizer.model": (
            sentencepiece_damaged,
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
