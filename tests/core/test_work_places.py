"""What a killed process leaves is removed by the next run, and nothing else is."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.core.small_bundle import tree
from tinyllava_edge import file_lock, work_places
from tinyllava_edge.atomic_files import output_directory, output_file, write_json
from tinyllava_edge.errors import OutputExistsError, UsageError
from tinyllava_edge.file_lock import open_lock, take_lock
from tinyllava_edge.work_places import LOCK_FILE, held

ROOT = Path(__file__).parents[2]
WORKING = """
import sys
from pathlib import Path
from tinyllava_edge import publish
from tinyllava_edge.atomic_files import output_directory, write_bytes
target, kind = Path(sys.argv[1]), sys.argv[2]
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
if kind == "old":
    publish._renamed = lambda *arguments: False
    rename = Path.rename
    Path.rename = lambda self, to: wait() if Path(to) == target else rename(self, to)
with output_directory(target, force=True, mark=lambda path: "") as work:
    (work / "half").write_bytes(bytes(1000))
    if kind == "tmp":
        wait()
"""


@contextmanager
def working(target: Path, kind: str = "tmp") -> "Iterator[subprocess.Popen[str]]":
    """A process that writes an output and waits in the middle of it; it is killed at the end."""
    command = [sys.executable, "-c", WORKING, str(target), kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == "ready\n"
        yield child
        child.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path) -> None:
    with output_directory(target) as work:
        (work / "whole").touch()


def test_the_next_run_removes_what_a_killed_one_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with working(tmp_path / "out"):
        pass
    [left] = names(tmp_path)
    assert left.startswith(".out.tmp-")
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert f"{left}: removed, 1,000 bytes" in capsys.readouterr().err


def test_what_a_running_process_works_on_stays(tmp_path: Path) -> None:
    with working(tmp_path / "out"):
        [work] = names(tmp_path)
        write(tmp_path / "out")
        assert names(tmp_path) == [work, "out"]
        assert (tmp_path / work / "new" / "half").exists()


def test_what_cannot_be_removed_is_named_and_can_be_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:  # as a directory without the right to write; root has it everywhere
        patch.setattr(work_places, "remove", lambda path: None)
        with output_directory(tmp_path / "out") as work:
            (work.parent / "more").mkdir()
    [left, _] = names(tmp_path)
    assert f"{left}: could not be removed" in capsys.readouterr().err
    with output_directory(tmp_path / "out", force=True, mark=lambda path: ""):
        pass
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_work_goes_on_and_nothing_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    (tmp_path / ".out.tmp-abcd1234").mkdir()
    handle = open_lock(tmp_path / ".out.tmp-abcd1234" / LOCK_FILE)
    assert take_lock(handle)
    assert not take_lock(handle, where_there_are_none=False)
    with held(tmp_path / "run.work"):
        write(tmp_path / "out")
        write_json(tmp_path / "file", 1)
    assert names(tmp_path) == [".out.tmp-abcd1234", "file", "out"]
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(code)):
        take_lock(handle)
    os.close(handle)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "without our lock": lambda folder: (folder / "mine").touch(),
    "with another's lock": lambda folder: (folder / LOCK_FILE).symlink_to("/dev/null"),
    "with a pipe for a lock": lambda folder: os.mkfifo(folder / LOCK_FILE),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_has_only_the_name_stays(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / ".out.tmp-abcd1234"
    folder.mkdir()
    FOREIGN[kind](folder)
    write(tmp_path / "out")
    assert names(tmp_path) == [".out.tmp-abcd1234", "out"]
    assert len(names(folder)) == 1


@pytest.mark.parametrize("name", [".out.tmp-mine", ".other.tmp-abcd1234", ".out.tmp-abcd1234.txt"])
def test_what_has_another_name_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / LOCK_FILE).touch()
    write(tmp_path / "out")
    assert names(tmp_path) == sorted([name, "out"])


def test_a_link_of_such_a_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / LOCK_FILE).touch()
    (tmp_path / ".out.tmp-abcd1234").symlink_to("home")
    write(tmp_path / "out")
    assert names(tmp_path / "home") == [LOCK_FILE]


@pytest.fixture
def killed_while_replacing(tmp_path: Path) -> Path:
    """A folder where the names could not be swapped in one step, and a kill came between the two."""
    write(tmp_path / "out")
    with working(tmp_path / "out", "old"):
        pass
    assert [name[:9] for name in names(tmp_path)] == [".out.old-", ".out.tmp-"]
    return tmp_path


def test_a_replaced_output_is_given_back(
    killed_while_replacing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = killed_while_replacing
    with pytest.raises(OutputExistsError, match="exists already"):
        write(folder / "out")
    assert set(tree(folder / "out")) == {"whole"}
    assert f"{folder / 'out'}: given back" in capsys.readouterr().err


def test_a_replaced_output_is_named_where_there_is_a_new_one(
    killed_while_replacing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = killed_while_replacing
    (folder / "out").write_text("new")
    with output_file(folder / "out", force=True, mark=lambda path: "") as work:
        work.write_text("newer")
    assert (folder / "out").read_text() == "newer"
    [aside, _] = names(folder)
    assert set(tree(folder / aside / "old")) == {"whole"}
    assert f"{folder / aside / 'old'}: what" in capsys.readouterr().err


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    with held(tmp_path / "run.work"):
        with (
            pytest.raises(UsageError, match=r"run\.work: another process works there"),
            held(tmp_path / "run.work"),
        ):
            pass
        assert names(tmp_path / "run.work") == [LOCK_FILE]
    assert names(tmp_path) == []


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_a_lock_that_another_process_just_removes_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def open_and_lose(path: Path, mode: int = 0o600) -> int:
        monkeypatch.setattr(file_lock, "open_lock", open_lock)
        if when == "before it is opened":
            shutil.rmtree(path.parent)
        handle = open_lock(path, mode)
        shutil.rmtree(path.parent)
        return handle

    monkeypatch.setattr(file_lock, "open_lock", open_and_lose)
    with (
        held(tmp_path / "run.work"),
        pytest.raises(UsageError, match="another process works there"),
        held(tmp_path / "run.work"),
    ):
        pass
    monkeypatch.setattr(file_lock, "open_lock", open_and_lose)
    with output_directory(tmp_path / "out") as work:
        assert (work.parent / LOCK_FILE).exists()
    assert names(tmp_path) == ["out"]


def test_a_place_goes_though_its_open_lock_keeps_it_as_on_nfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmdir, failed = Path.rmdir, set()

    def fail_once(path: Path) -> None:
        if path not in failed:
            failed.add(path)
            raise OSError(errno.ENOTEMPTY, "")
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", fail_once)
    with held(tmp_path / "run.work"):
        write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert len(failed) == 2
