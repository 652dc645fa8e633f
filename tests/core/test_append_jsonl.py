"""Lines that are on the disk as they come: kills, a second writer, other inputs, a full disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllava_edge.append_jsonl import append_lines, encode_line, read_lines, work_path
from tinyllava_edge.errors import DiskFullError, OutputBusyError, OutputExistsError, ResumeError

INPUTS = {"bundle": "a1", "variants": ["fp32", "q8_0"], "max_tokens": 16}
LINES = [{"n": 0, "text": "a\u2028b\x85c"}, {"n": 1, "text": "\ud800 half"}, {"n": 2, "text": "é\n"}]
# Appends the lines it is given, then stays until it is killed.
WRITER = """
import json, sys, time
from pathlib import Path
from tinyllava_edge.append_jsonl import append_lines
with append_lines(Path(sys.argv[1]), json.loads(sys.argv[2])) as file:
    for line in json.loads(sys.argv[3]):
        file.append(line)
    print("written", flush=True)
    time.sleep(60)
"""


def ours(path: Path) -> str:
    return "" if all("n" in line for line in read_lines(path)) else "holds something else"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.fixture
def killed(path: Path) -> Path:
    """Two lines of a process that was killed, with SIGKILL, while it held the file."""
    arguments = (str(path), json.dumps(INPUTS), json.dumps(LINES[:2]))
    with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        with pytest.raises(OutputBusyError, match="another process is writing"), append_lines(path, INPUTS):
            pass
        process.send_signal(signal.SIGKILL)
    return path


def write_all(path: Path) -> None:
    with append_lines(path, INPUTS) as file:
        for line in LINES:
            file.append(line)
        file.finish()


def test_a_killed_run_goes_on_to_the_same_bytes(killed: Path, tmp_path: Path) -> None:
    with killed.open("ab") as file:
        file.write(encode_line(LINES[2])[:-4])  # as a kill in the middle of a write leaves it
    with append_lines(killed, INPUTS, resume=True) as lines:
        assert lines.lines == LINES[:2]
        lines.append(LINES[2])
        lines.finish()
    write_all(tmp_path / "whole.jsonl")
    assert killed.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line) for line in killed.read_bytes().decode().split("\n")[:-1]] == LINES
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "whole.jsonl"}


def test_what_a_run_left_is_not_begun_anew_unasked(killed: Path) -> None:
    with pytest.raises(OutputExistsError, match="--resume goes on"), append_lines(killed, INPUTS):
        pass
    assert read_lines(killed) == LINES[:2]
    with append_lines(killed, INPUTS, force=True, mark=ours) as lines:
        assert (lines.lines, read_lines(killed)) == ([], LINES[:2])  # until there is something in their place
        lines.append(LINES[2])
    assert read_lines(killed) == [LINES[2]]


def test_other_inputs_are_named_and_nothing_is_touched(killed: Path) -> None:
    other = {**INPUTS, "max_tokens": 32, "blind": True}
    before = killed.read_bytes(), work_path(killed).read_bytes()
    with pytest.raises(ResumeError, match="max_tokens was 16 and is 32, blind was None and is True"):  # noqa: SIM117
        with append_lines(killed, other, resume=True):
            pass
    assert (killed.read_bytes(), work_path(killed).read_bytes()) == before


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[1]\n", b'{"n": \n'])
def test_a_damaged_line_is_named(killed: Path, damage: bytes) -> None:
    killed.write_bytes(encode_line(LINES[0]) + damage)
    with pytest.raises(ResumeError, match="line 2"), append_lines(killed, INPUTS, resume=True):
        pass


def test_a_complete_file_is_complete(path: Path) -> None:
    write_all(path)
    with pytest.raises(ResumeError, match="complete"), append_lines(path, INPUTS, resume=True):
        pass
    with pytest.raises(OutputExistsError, match="--force"), append_lines(path, INPUTS):
        pass
    assert read_lines(path) == LINES
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with append_lines(path.with_name("new.jsonl"), INPUTS, resume=True) as lines:  # nothing there: begun
        lines.append(LINES[0])


def test_only_our_own_is_replaced(path: Path) -> None:
    path.write_text('{"mine": 1}\n')
    with pytest.raises(OutputExistsError), append_lines(path, INPUTS, force=True, mark=ours):
        pass
    work_path(path).write_text('{"somebody": "else"}')
    with pytest.raises(ResumeError, match="not this program's"), append_lines(path, INPUTS, force=True):
        pass
    assert (path.read_text(), work_path(path).read_text()) == ('{"mine": 1}\n', '{"somebody": "else"}')


def test_the_last_form_is_taken_in_one_step(path: Path) -> None:
    with append_lines(path, INPUTS) as file:
        file.append(LINES[2])
        file.append(LINES[0])
        file.settle([LINES[0], LINES[2]])
        assert read_lines(path) == [LINES[0], LINES[2]]
    with append_lines(path, INPUTS, resume=True) as file:  # it was not finished
        file.append(LINES[1])
    assert read_lines(path) == [LINES[0], LINES[2], LINES[1]]


MINE = b'{"mine": 1}\n'


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl"])
def test_what_appears_before_the_first_line_stays(path: Path, name: str, force: bool) -> None:
    other = path.with_name("b.jsonl")
    if force:
        write_all(path)
    with append_lines(path, INPUTS, force=force, mark=ours, others=[other]) as file:
        path.with_name(name).write_bytes(MINE)
        with pytest.raises(OutputExistsError, match=name):
            file.append(LINES[0])
    left = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert left.pop(name) == MINE
    assert left == ({path.name: b"".join(map(encode_line, LINES))} if force and name != path.name else {})


def test_without_force_not_even_ones_own_is_replaced_that_appears(path: Path) -> None:
    with append_lines(path, INPUTS, mark=ours) as file:
        path.write_bytes(encode_line(LINES[2]))
        with pytest.raises(OutputExistsError, match="--force"):
            file.append(LINES[0])
    assert {p.name: read_lines(p) for p in path.parent.iterdir()} == {path.name: [LINES[2]]}


def test_another_file_that_this_run_did_not_write_stays(path: Path) -> None:
    other, aside = path.with_name("b.jsonl"), path.with_name("c.jsonl")
    with append_lines(path, INPUTS, mark=ours, others=[other]) as file:
        file.append(LINES[0])
        other.write_bytes(encode_line(LINES[2]))  # as another run writes it
        with pytest.raises(OutputExistsError, match=r"b\.jsonl: holds what this run did not write"):
            file.settle([LINES[0]], [LINES[1]])
    with pytest.raises(OutputExistsError, match=r"b\.jsonl: holds"):  # noqa: SIM117
        with append_lines(path, INPUTS, resume=True, mark=ours, others=[other]):
            pass
    assert (read_lines(path), read_lines(other)) == ([LINES[0]], [LINES[2]])
    other.rename(aside)
    for last in LINES[1:]:  # what it wrote itself, or a run that it goes on with, it replaces
        with append_lines(path, INPUTS, resume=True, mark=ours, others=[other]) as file:
            assert LINES[0] in file.lines
            file.settle([LINES[0]], [last])
        assert (read_lines(path), read_lines(other)) == ([LINES[0]], [last])
    assert read_lines(aside) == [LINES[2]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(handle: int, content: bytes) -> int:
        """Half of a line fits, and then nothing."""
        if len(content) < 10:
            with open("/dev/full", "wb", buffering=0) as full:
                return real(full.fileno(), content)
        return real(handle, content[: len(content) // 2])

    with append_lines(path, INPUTS) as file:
        file.append(LINES[0])
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(DiskFullError, match=r"a\.jsonl: the disk is full"):
            file.append(LINES[1])
        monkeypatch.undo()
        file.append(LINES[2])
    assert read_lines(path) == [LINES[0], LINES[2]]
