"""What is no file in the place of one, for every option that names one: one line, code 2, and no waiting."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.small_bundle import write_small_bundle
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.cli import main

ROOT = Path(__file__).parents[1]
Refused = Callable[[str, Path], None]
KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "name of 300 bytes": lambda path: None,
}
# GIVEN is what is no file.
OPTIONS = {
    "run": "run nano GIVEN What?",
    "ask": "ask nano What? GIVEN",
    "ask --input": "ask nano --input GIVEN -o FOLDER/out.jsonl",
    "chat": "chat nano GIVEN",
    "explain": "explain nano GIVEN What? --checkpoint nano",
    "eval --questions": "eval nano --questions GIVEN --images FOLDER",
    "bench --picture": "bench nano --runtime scripted --picture GIVEN",
    "bench --questions": "bench nano --runtime scripted --questions GIVEN --images FOLDER",
    "bench compare": "bench compare GIVEN GIVEN",
    "train --data": "train --data GIVEN --from nano -o FOLDER/out",
    "ablate": "ablate GIVEN --plan",
    "card --bench": "card nano --bench GIVEN",
    "card --eval": "card nano --eval GIVEN",
    "push": "push GIVEN someone/name --dry-run",
    "inspect": "inspect GIVEN",
    "export": "export GIVEN -o FOLDER/out",
    "verify": "verify GIVEN",
    "verify --against": "verify --against GIVEN --checkpoint nano",
    "prune": "prune GIVEN -o FOLDER/out --vision fp16 --language q8_0",
    "doctor --clean": "doctor --clean GIVEN/below",
}
# Parts of a checkpoint, of a bundle, and of the sets for eval: each is replaced by what is no file.
IN_A_CHECKPOINT = (
    *("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "preprocessor_config.json", "added_tokens.json", "tinyllava_edge.json"),
)
IN_A_BUNDLE = ("manifest.json", "tokenizer.json", "language/f16.gguf")
SETS = {
    "pope": "coco/coco_pope_random.json",
    "textvqa": "TextVQA_0.5.1_val.json",
}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Opening a pipe that nobody writes to would wait for ever."""

    def ended(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("given") / "tiny", hidden=32, intermediate=48, layers=1
    )


@pytest.fixture
def assert_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A command's words, with GIVEN and FOLDER in them, and the file that is none: one line and code 2."""

    def refused(words: str, given: Path) -> None:
        folder = given.parent
        arguments = [w.replace("GIVEN", str(given)).replace("FOLDER", str(folder)) for w in words.split()]
        monkeypatch.setattr(sys, "argv", ["tinyllava-edge", *arguments])
        before = sorted(os.listdir(folder))
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 2, printed
        assert printed.out == ""
        assert printed.err.startswith("tinyllava-edge: ")
        assert printed.err.count("\n") == 1
        assert given.name[:20] in printed.err
        assert sorted(os.listdir(folder)) == before

    return refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option(tmp_path: Path, option: str, kind: str, assert_refused: Refused) -> None:
    given = tmp_path / ("x" * 300 if kind.startswith("name") else "given.gguf")
    KINDS[kind](given)
    assert_refused(OPTIONS[option], given)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "directory"])
@pytest.mark.parametrize("name", IN_A_CHECKPOINT)
def test_a_part_of_a_checkpoint(
    tmp_path: Path, checkpoint: Path, name: str, kind: str, assert_refused: Refused
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy", symlinks=True))
    (copy / name).unlink(missing_ok=True)
    KINDS[kind](copy / name)
    assert_refused(f"inspect {copy}", copy / name)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "directory"])
@pytest.mark.parametrize("name", IN_A_BUNDLE)
def test_a_part_of_a_bundle(tmp_path: Path, name: str, kind: str, assert_refused: Refused) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    (bundle / name).unlink()
    KINDS[kind](bundle / name)
    for words in (f"inspect {bundle}", f"verify {bundle}", f"run {bundle} What?"):
        if not (words.startswith("inspect") and name == "manifest.json"):
            assert_refused(words, bundle / name)


@pytest.mark.parametrize("kind", ["missing", "pipe", "device", "loop", "directory"])
@pytest.mark.parametrize("name", SETS)
def test_a_file_of_a_public_set(tmp_path: Path, name: str, kind: str, assert_refused: Refused) -> None:
    (tmp_path / SETS[name]).parent.mkdir(exist_ok=True)
    KINDS[kind](tmp_path / SETS[name])
    assert_refused(f"eval nano --benchmark {name} --data {tmp_path}", tmp_path / SETS[name])


def test_a_directory_of_an_odd_name_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`~` is what the shell expands; here it is a plain name, and a line end may be in one."""
    (tmp_path / "~\n").mkdir()
    shutil.copy(ROOT / "docs" / "pictures" / "emoji.webp", tmp_path / "~\n" / "p.webp")
    monkeypatch.chdir(tmp_path)
    for words in (
        ["prune", "nano", "-o", "~\n/small", "--vision", "fp16", "--language", "q8_0", "--json"],
        ["run", "~\n/small", "~\n/p.webp", "What is this?", "--max-tokens", "2", "--json"],
        ["inspect", "~\n/small", "--json"],
        ["doctor", "--clean", "~\n", "--json"],
    ):
        monkeypatch.setattr(sys, "argv", ["tinyllava-edge", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        assert json.loads(printed.out)
    assert os.listdir(tmp_path) == ["~\n"]
    assert sorted(os.listdir(tmp_path / "~\n")) == ["p.webp", "small"]
