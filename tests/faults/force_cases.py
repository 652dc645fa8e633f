"""What `--force` replaces and refuses, for each command with an output: `tests.faults --force-cases`.

Refused is exit code 2 with every file as it was. "old" is an output that the same command wrote before.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.core.small_bundle import tree
from tests.faults.cases import perform, write_sources

REFUSED, WRITTEN = "refused", "written"
_KEEP = "--vision fp32 --language f32"
_EXPORT = "export {home}/ck --vision fp32 --language f16"
_TRAIN = "train --from {home}/ck --data {home}/data/data.json --batch-size 4 --precision fp32"
_EVAL = "eval {home}/b --questions {home}/data/q.json --images {home}/data --max-tokens 1 --blind"


@dataclass(frozen=True)
class ForceCase:
    """A command, what is in the place of its output, and what must become of that."""

    words: str
    place: str
    expected: str
    prepare: Callable[[Path], object] = lambda home: None


def _folder_with(name: str, content: str) -> Callable[[Path], None]:
    def prepare(home: Path) -> None:
        (home / "out").mkdir()
        (home / "out" / name).write_text(content)

    return prepare


def _file(home: Path) -> None:
    (home / "out").write_text("mine")


_FOREIGN = {
    "any config.json": _folder_with("config.json", "{}"),
    "a browser extension": _folder_with("manifest.json", json.dumps({"manifest_version": 3, "name": "x"})),
    "any report.json": _folder_with("report.json", "{}"),
    "a user's notes": _folder_with("notes.txt", "mine"),
    "a user's file": _file,
}
_COMMANDS = {
    "export": f"{_EXPORT} -o {{home}}/out",
    "prune": f"prune {{home}}/b -o {{home}}/out {_KEEP}",
    "deploy": "deploy nano --device orin-nano-8gb -o {home}/out",
    "train": f"{_TRAIN} -o {{home}}/out",
    "eval": f"{_EVAL} --answers {{home}}/out",
    "bench": "bench {home}/b -o {home}/out --runs 6 --sessions 1",
    "build": "build {home}/b -o {home}/out --target tensorrt-rtx --vision fp32",
    "hardware-check": "hardware-check {home}/b -o {home}/out --runs 2",
    "hub-check": "hub-check --hub-root {home} --checkpoints a/ck -o {home}/out",
}
_TOUCHING = (
    ("export {home}/ck -o {home}/ck", "is the checkpoint"),
    ("export {home}/ck -o {home}/ck/x", "lies in the checkpoint"),
    ("export {home}/ck -o {home}", "holds the checkpoint"),
    ("export {home}/ck -o {home}/data/x --calibration {home}/data", "lies in the calibration pictures"),
    (f"prune {{home}}/b -o {{home}}/b {_KEEP}", "is the bundle"),
    (f"prune {{home}}/b -o {{home}}/b/inner {_KEEP}", "lies in the bundle"),
    (f"prune {{home}}/b -o {{home}}/link {_KEEP}", "is a link to the bundle"),
    ("deploy {home}/b --device orin-nano-8gb -o {home}/b/x", "lies in the bundle"),
    (f"{_TRAIN} -o {{home}}/ck", "is the checkpoint"),
    (f"{_TRAIN} -o {{home}}/ck/x", "lies in the checkpoint"),
    (f"{_TRAIN} --images {{home}}/b -o {{home}}/b/x", "lies in the pictures"),
    (f"{_EVAL} --answers {{home}}/data/q.json", "is the questions"),
    (f"{_EVAL} --answers {{home}}/b/parity/a.json", "lies in the bundle"),
    ("bench {home}/b -o {home}/b/report", "lies in the bundle"),
    ("build {home}/b -o {home} --target tensorrt-rtx", "holds the bundle"),
)


def force_cases() -> Iterator[ForceCase]:
    """All of them; each with --force, and an output of the same command also without."""
    for words, place in _TOUCHING:
        yield ForceCase(
            f"{words} --force", place, REFUSED, lambda home: (home / "link").symlink_to(home / "b")
        )
    for words in _COMMANDS.values():
        for place, prepare in _FOREIGN.items():
            yield ForceCase(f"{words} --force", place, REFUSED, prepare)
    for name in ("export", "prune", "deploy", "train", "eval"):
        words = _COMMANDS[name]

        def old(home: Path, words: str = words) -> None:
            assert _code(words, home) == 0, words

        yield ForceCase(words, "old, without --force", REFUSED, old)
        yield ForceCase(f"{words} --force", "old", WRITTEN, old)
    yield ForceCase(
        f"{_COMMANDS['prune']} --force", "an empty folder", WRITTEN, lambda home: (home / "out").mkdir()
    )


def main() -> int:
    """Print the table; 1 where something is not as expected."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="tinyllava-force-") as folder:
        home = Path(folder, "home")
        _in_fork(lambda: _write_home(home))
        good = Path(shutil.copytree(home, Path(folder, "good"), symlinks=True))
        for case in force_cases():
            shutil.rmtree(home)
            shutil.copytree(good, home, symlinks=True)
            case.prepare(home)
            before = tree(home)
            code = _code(case.words, home)
            is_same = tree(home) == before
            found = {2: REFUSED, 0: WRITTEN}.get(code, f"code {code}")
            kept = "kept" if is_same else "changed"
            is_right = found == case.expected and (is_same or found == WRITTEN)
            wrong += not is_right
            command = case.words.replace("{home}/", "").split(" --vision")[0]
            print(f"{'' if is_right else 'WRONG '}{found:8} {kept:8} {case.place:34} {command}")  # noqa: T201
    return int(bool(wrong))


def _write_home(home: Path) -> int:
    write_sources(home)
    shown = next((home / "data").glob("*.png"))
    (home / "data" / "q.json").write_text(
        json.dumps([{"id": 1, "image": shown.name, "question": "What?", "answer": "a"}])
    )
    return 0


def _code(words: str, home: Path) -> int:
    return _in_fork(lambda: perform(words.replace("{home}", str(home)), home, home / "nowhere", ""))


def _in_fork(work: Callable[[], int]) -> int:
    """What it returns, of a process of its own whose words nobody reads."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sink = os.open(os.devnull, os.O_RDWR)
        for handle in (1, 2):
            os.dup2(sink, handle)
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
