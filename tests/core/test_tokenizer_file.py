"""The door to tokenizer.json: what the exporter writes passes, all else is one line."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.core.gguf_files import tiny_llama
from tests.core.small_bundle import change_manifest, file_entry, write_small_bundle
from tests.core.tokenizer_damage import kinds, outcome_of
from tests.golden import shared_fixtures
from tests.runtimes.bundles import llama_tokenizer
from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.layouts import TOKENIZER_FILES
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError, CheckpointError, guarded
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TextTokenizer
from tinyllava_edge.tokenizer_file import MAX_TOKENIZER_BYTES, check_tokenizer, open_tokenizer

GOOD = json.loads(llama_tokenizer())  # 300 tokens, ids 0 to 2 special
SPLIT = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
ADDED = {**GOOD["added_tokens"][0], "content": "<new>", "id": 300}
Change = Callable[[dict[str, Any]], Any]


def changed(change: Change) -> str:
    data = json.loads(llama_tokenizer())
    change(data)
    return json.dumps(data)


def put(*path: str | int, value: Any) -> Change:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def assert_refused(text: str, *named: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_tokenizer(text, "b/tokenizer.json", BundleError, 301)
    message = str(caught.value)
    assert message.startswith("b/tokenizer.json cannot be read (")
    assert "\n" not in message
    assert all(name in message for name in named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("normalizer", value={"type": "Lowercase"}), "normalizer 'Lowercase' is not supported"),
        (put("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "'Precompiled'"),
        (put("normalizer", "normalizers", 1, "pattern", value={"Regex": "(a+)+$"}), "normalizer Replace"),
        (put("normalizer", "normalizers", 1, "pattern", value={"String": ""}), "normalizer Replace"),
        (put("normalizer", "normalizers", 1, "content", value="a" * 10000), "normalizer Replace"),
        (put("normalizer", "normalizers", value=[GOOD["normalizer"]] * 40), "at most 16"),
        (put("pre_tokenizer", value=SPLIT), "pre_tokenizer Split: 'pattern'"),
        (put("pre_tokenizer", value={"type": "Sequence", "pretokenizers": [SPLIT]}), "pre_tokenizer Split"),
        (put("pre_tokenizer", value={**BYTE_LEVEL, "more": 1}), "'more'"),
        (put("pre_tokenizer", value=[]), "pre_tokenizer None"),
        (put("post_processor", value={"type": "BertProcessing", "sep": ["a", 1]}), "'BertProcessing'"),
        (put("decoder", value={"type": "WordPiece", "prefix": "##", "cleanup": True}), "decoder 'WordPiece'"),
        (put("decoder", "decoders", 3, "start", value=1 << 40), "decoder Strip: 'start'"),
        (put("model", "type", value="Unigram"), "model.type is 'Unigram', supported: BPE"),
        (put("model", "type", value=["BPE"]), "model.type is ['BPE']"),
        (put("model", "dropout", value=2), "'dropout': 2"),
        (put("model", "continuing_subword_prefix", value="##"), "'continuing_subword_prefix'"),
        (put("model", "unk_token", value="<none>"), "unk_token '<none>' is not in the vocabulary"),
        (put("model", "vocab", "a", value=4), "both have id 4"),
        (put("model", "vocab", "a", value=-1), "token 'a' has id -1"),
        (put("model", "vocab", "a", value=1 << 32), "token 'a' has id 4294967296"),
        (put("model", "vocab", "a", value=True), "token 'a' has id True"),
        (put("model", "vocab", "new", value=301), "id 301 is no row of a vocabulary of 301"),
        (put("model", "merges", 0, value=["t", "zz"]), "needs 'zz', which is not in the vocabulary"),
        (put("model", "merges", 0, value=["a", "b"]), "needs 'ab'"),
        (put("model", "merges", 0, value="t h e"), "is not a merge of two pieces"),
        (put("model", "merges", 0, value=None), "is not a merge of two pieces"),
        (put("added_tokens", 0, "id", value=5), "both have id 5"),
        (put("added_tokens", 0, "id", value=300), "has ids 0 and 300"),
        (put("added_tokens", 0, "content", value=""), "'content'"),
        (put("added_tokens", 0, "special", value=1), "'special'"),
        (put("added_tokens", 0, value={"id": 0}), "added_tokens"),
        (put("added_tokens", value={}), "added_tokens is no list"),
        (lambda data: data["added_tokens"].append({**ADDED, "id": 302}), "302 is no row"),
        (lambda data: data["model"]["vocab"].pop("unused0"), "<"),
        (put("version", value="2.0"), ""),
        (put("something", value=1), "'something' is not known"),
    ],
)  # fmt: skip
def test_what_no_exporter_writes_is_refused(change: Change, named: str) -> None:
    if named == "<":  # a gap: an added token would come to it
        assert_refused(
            changed(lambda data: (change(data), data["added_tokens"].append(ADDED))), "comes to 299"
        )
    else:
        assert_refused(changed(change), named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (llama_tokenizer().replace('"dropout": null', '"dropout": NaN'), "NaN is no number of JSON"),
        (llama_tokenizer().replace('"b": ', '"a": 3, "b": ', 1), "'a' is there twice, with different values"),
        (llama_tokenizer().replace('"unused0"', '"\\ud800"'), ""),
        ("[" * 100_000, ""),
        ("[]", "no object with a model"),
    ],
)
def test_what_is_no_strict_json_is_refused(text: str, named: str) -> None:
    assert_refused(text, named)


def test_added_tokens_come_to_the_ids_that_the_file_says() -> None:
    text = changed(lambda data: data["added_tokens"].append(ADDED))
    assert open_tokenizer(text, "file", BundleError, 301).token_to_id("<new>") == 300


class PanicException(BaseException):
    """As pyo3's, which no module exports."""


@pytest.mark.parametrize(
    "fault", [PanicException("index 7 of 3\nat line 9"), IndexError("7"), OSError(5, "I/O")]
)
def test_whatever_a_library_throws_is_one_line(fault: BaseException) -> None:
    refused = pytest.raises(CheckpointError, match=r"^here cannot be read \(.+\)\. Copy it again\.$")
    with refused, guarded("here", CheckpointError):
        raise fault


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_ctrl_c_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind), guarded("here", CheckpointError):
        raise kind


def with_tokenizer(root: Path, text: str, rows: int) -> Path:
    """A bundle with this tokenizer and a language model of as many rows, whose hashes fit."""
    gguf = "language/f16.gguf"
    (root / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    (root / gguf).write_bytes(tiny_llama("f16", vocab=rows, hidden=16).encode())
    entries = {name: file_entry(name, (root / name).read_bytes()) for name in (TOKENIZER_FILE, gguf)}

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"] = [entries.get(entry["path"], entry) for entry in manifest["files"]]
        manifest["language"]["vocab_size"] = rows

    change_manifest(root, change)
    return root


def test_a_bundle_is_opened_only_with_ids_that_are_rows(tmp_path: Path) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    Bundle.open(with_tokenizer(root, llama_tokenizer(), 300))
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read \(token id 299 is no row .* 299\)"):
        Bundle.open(with_tokenizer(root, llama_tokenizer(), 299))


def test_what_was_remembered_counts_for_as_many_rows_only(tmp_path: Path) -> None:
    root = with_tokenizer(write_small_bundle(tmp_path / "bundle"), llama_tokenizer(), 300)
    os.utime(root / TOKENIZER_FILE, (1, 1))
    Bundle.open(root)
    tokenizer = (root / TOKENIZER_FILE).stat()
    with_tokenizer(root, llama_tokenizer(), 200)
    os.utime(root / TOKENIZER_FILE, ns=(tokenizer.st_atime_ns, tokenizer.st_mtime_ns))
    with pytest.raises(BundleError, match="token id 299 is no row"):
        Bundle.open(root)


def test_files_that_are_no_text_of_that_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / TOKENIZER_FILE
    os.mkfifo(path)
    for write in (
        lambda: None,
        lambda: path.unlink(),
        lambda: path.write_bytes(b"\xff{}"),
        lambda: path.mkdir(),
    ):
        write()
        with pytest.raises(BundleError, match=r"tokenizer\.json: (cannot be read|no such file|not UTF-8)"):
            check_tokenizer(path, 300)
        if path.is_file():
            path.unlink()
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(BundleError, match=f"expected at most {MAX_TOKENIZER_BYTES:,}"):
        check_tokenizer(path, 300)


def tokenizer_folders() -> list[Path]:
    """But the large vocabularies, of which test_tokenizer_families.py opens what is exported."""
    found = {path.parent for name in TOKENIZER_FILES for path in shared_fixtures().rglob(name)}
    return sorted(folder for folder in found if folder.parent.name != "tokenizers")


@pytest.mark.parametrize("folder", tokenizer_folders(), ids=lambda folder: "/".join(folder.parts[-3:]))
def test_what_is_exported_of_every_family_is_opened(folder: Path, tmp_path: Path) -> None:
    text = read_tokenizer(folder).tokenizer_json
    path = tmp_path / TOKENIZER_FILE
    path.write_text(text, encoding="utf-8")
    largest = max(open_tokenizer(text, folder, BundleError).get_vocab().values())
    check_tokenizer(path, largest + 1)
    with pytest.raises(BundleError, match=f"token id {largest} is no row"):
        check_tokenizer(path, largest)


def test_what_other_exporters_of_the_families_write_is_opened() -> None:
    """Gemma's, Qwen2's and Llama 3's own tokenizer.json: their steps, as their repositories have them."""
    from tinyllava_edge.tokenizer_splits import SPLITS

    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    space = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    start = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    splits = [{**SPLIT, "pattern": {"Regex": regex}} for regex in SPLITS]
    all_steps: tuple[dict[str, Any], ...] = (
        {"normalizer": mark, "pre_tokenizer": space, "post_processor": start},
        *({"normalizer": {"type": "NFC"}, "decoder": BYTE_LEVEL, "pre_tokenizer": sequence} for sequence in (
            {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]} for split in splits)),
        {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, start]}, "decoder": BYTE_LEVEL},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}},
        {"model": {**GOOD["model"], "merges": [" ".join(pair) for pair in GOOD["model"]["merges"]]}},
    )  # fmt: skip
    for steps in all_steps:
        opened = TextTokenizer(json.dumps({**GOOD, **steps}), bos_id=None)
        assert opened.decode(opened.encode_text("the end"))


def test_nanos_tokenizer_is_opened() -> None:
    check_tokenizer(bundle_path("nano") / TOKENIZER_FILE, 1024)


@pytest.mark.parametrize("kind", kinds())
def test_damage_of_any_kind_is_a_tokenizer_or_one_line(kind: str, tmp_path: Path) -> None:
    found = [outcome_of(kind, 0, index, tmp_path) for index in range(120)]
    assert {outcome for outcome, _ in found} == {"ok", "typed"}, [
        d for o, d in found if o not in ("ok", "typed")
    ]


def test_damage_is_repeatable() -> None:
    for damage, _, path in kinds().values():
        content = path.read_bytes()
        assert damage(random.Random(5), content) == damage(random.Random(5), content) != content
