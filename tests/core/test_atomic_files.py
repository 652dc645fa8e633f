"""No output is lost: what is read stays, what is not ours stays, and a kill leaves the old or the new one."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.small_bundle import FILES, tree, write_small_bundle
from tinyllava_edge import atomic_files, publish
from tinyllava_edge.atomic_files import check_apart, check_output, output_directory, output_file, write_bytes
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import DiskFullError, OutputExistsError, UsageError
from tinyllava_edge.parity_files import write_parity

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_output(target: Path) -> str:
    return "" if (target if target.is_file() else target / "ours").read_text() == "ours" else "is not ours"


def beside(source: Path) -> dict[str, Path]:
    """Outputs that touch a source, by what is odd about them."""
    (source.parent / "link").symlink_to(source)
    (source.parent / "sub-link").symlink_to(source / "sub")
    return {
        "is": source,
        "is, by ..": source / "sub" / "..",
        "is, by link": source.parent / "link",
        "is, by link and ..": source.parent / "sub-link" / "..",
        "lies in": source / "new" / "deeper",
        "lies in, by link": source.parent / "link" / "new",
        "lies in, by link of a part": source.parent / "sub-link" / "new",
        "holds": source.parent,
        "holds, by ..": source / ".." / ".." / source.parent.name,
        "is a link in it": source / "out",
    }


@pytest.mark.parametrize("name", [
    "is", "is, by ..", "is, by link", "is, by link and ..", "lies in", "lies in, by link",
    "lies in, by link of a part", "holds", "holds, by ..", "is a link in it",
])  # fmt: skip
@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_touches_a_source_is_refused(tmp_path: Path, name: str, force: bool) -> None:
    source = tmp_path / "folder" / "source"
    (source / "sub").mkdir(parents=True)
    (source / "out").symlink_to(tmp_path)
    target = beside(source)[name]
    with pytest.raises(UsageError, match=r"(is|holds|lies in) .*source, which this command reads"):
        check_output(target, force=force, mark=is_output, sources=(None, tmp_path / "absent", source))


def test_what_only_stands_near_a_source_is_none(tmp_path: Path) -> None:
    for name in ("source", "source2", "other"):
        (tmp_path / name).mkdir()
    check_apart(tmp_path / "other", (tmp_path / "source",))
    check_apart(tmp_path / "source2", (tmp_path / "source",))
    check_apart(tmp_path / "source" / ".." / "new", (tmp_path / "source",))
    check_apart(tmp_path / "new", (tmp_path / "source" / "file.json",))


def test_a_file_that_is_read_is_no_output_under_any_name(tmp_path: Path) -> None:
    questions = tmp_path / "q.json"
    questions.write_text("[]")
    os.link(questions, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("q.json")
    for name in ("q.json", "hard", "soft"):
        with pytest.raises(UsageError, match=f"{name}: is .*q.json"):
            check_apart(tmp_path / name, (questions,))


def test_what_a_source_links_to_is_read_too(tmp_path: Path) -> None:
    """The hub's cache keeps a checkpoint's files elsewhere."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a1").write_text("weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/a1")
    for name in ("blobs", "blobs/a1"):
        with pytest.raises(UsageError, match=r"holds .*snapshot"):
            check_apart(tmp_path / name, (tmp_path / "snapshot",))


def test_a_mount_of_a_source_is_the_source(tmp_path: Path) -> None:
    for name in ("source", "mounted"):
        (tmp_path / name).mkdir()
    command = ["mount", "--bind", str(tmp_path / "source"), str(tmp_path / "mounted")]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user cannot mount")
    try:
        for name in ("mounted", "mounted/new"):
            with pytest.raises(UsageError, match="which this command reads"):
                check_apart(tmp_path / name, (tmp_path / "source",))
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a browser extension": lambda p: (p / "manifest.json").write_text('{"manifest_version": 3}'),
    "another schema": lambda p: (p / "manifest.json").write_text('{"schema_version": 1}'),
    "no JSON": lambda p: (p / "manifest.json").write_text("{"),
    "deep JSON": lambda p: (p / "manifest.json").write_text("[" * 100_000),
    "a manifest that is a folder": lambda p: (p / "manifest.json").mkdir(),
    "a pipe": lambda p: os.mkfifo(p / "manifest.json"),
    "any config": lambda p: (p / "config.json").write_text("{}"),
    "any report": lambda p: (p / "report.json").write_text("{}"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_name_makes_no_bundle(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "home"
    target.mkdir()
    FOREIGN[kind](target)
    with pytest.raises(OutputExistsError, match=r"home: is no output of this command.*--force"):
        write_small_bundle(target, force=True)
    assert len(names(target)) == 1


@pytest.mark.parametrize("name", ["notes.txt", "vision/notes.txt", "parity/notes.txt", "parity/mine.json"])
def test_a_file_of_the_users_in_a_bundle_keeps_it(tmp_path: Path, name: str) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    write_parity(Bundle.open(root), "verify", {})
    (root / name).write_text("{}")
    before = tree(root)
    with pytest.raises(OutputExistsError, match=f"bundle: holds {name}, which"):
        write_small_bundle(root, force=True)
    assert tree(root) == before


def test_a_link_in_a_bundle_keeps_it(tmp_path: Path) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    (root / "vision" / "more").symlink_to(tmp_path)
    with pytest.raises(OutputExistsError, match="holds vision/more"):
        write_small_bundle(root, force=True)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_bundle_is_still_a_bundle(tmp_path: Path, damage: str) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    place = root / "language" / "f16.gguf"
    place.unlink() if damage == "gone" else place.write_text("x")
    write_small_bundle(root, force=True)
    assert Bundle.open(root)


@pytest.mark.parametrize("content", ["", "mine"])
def test_a_file_is_no_directory_of_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "bundle").write_text(content)
    with pytest.raises(OutputExistsError):
        write_small_bundle(tmp_path / "bundle", force=True)
    assert (tmp_path / "bundle").read_text() == content


def appear(kind: str, target: Path) -> None:
    if kind == "bundle":
        write_small_bundle(target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "link":
        target.symlink_to("nowhere")
    else:
        target.write_text("theirs")


@pytest.mark.parametrize("in_one_step", [True, False])
@pytest.mark.parametrize("kind", ["bundle", "folder", "file", "link"])
def test_what_appears_during_the_work_stays(
    tmp_path: Path, kind: str, in_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_step:
        monkeypatch.setattr(publish, "_renamed", lambda *arguments: False)
    for module in (atomic_files, publish):  # it looked before
        monkeypatch.setattr(module, "check_output", lambda *arguments, **options: None)
    for write in (output_directory, output_file):
        target = tmp_path / write.__name__
        writing = write(target)
        work = writing.__enter__()
        appear(kind, target)
        before = tree(target) if target.is_dir() else target.lstat()
        (work / "ours" if work.is_dir() else work).write_text("ours")
        with pytest.raises(OutputExistsError, match="appeared while"):
            writing.__exit__(None, None, None)
        assert before == (tree(target) if target.is_dir() else target.lstat())
    assert names(tmp_path) == ["output_directory", "output_file"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("force", [False, True])
def test_without_renameat2_it_is_done_in_two_steps_and_said(
    tmp_path: Path,
    code: int,
    force: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class OldLibrary:
        def renameat2(self, *arguments: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **options: OldLibrary())
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    if force:
        write_small_bundle(tmp_path / "bundle")
    write_small_bundle(tmp_path / "bundle", force=force)
    assert Bundle.open(tmp_path / "bundle")
    assert names(tmp_path) == ["bundle"]
    assert "cannot swap names in one step here" in capsys.readouterr().err


def test_the_one_step_is_used_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux'")
    write_small_bundle(tmp_path / "bundle")
    write_small_bundle(tmp_path / "bundle", force=True)
    assert capsys.readouterr().err == ""


AT_ONCE = """
import sys, time
from pathlib import Path
from tests.core.small_bundle import seal, write_files
from tinyllava_edge.bundle import create_bundle
from tinyllava_edge.errors import OutputExistsError
try:
    with create_bundle(Path(sys.argv[1])) as writer:
        write_files(writer.root)
        seal(writer)
        print("ready", flush=True)
        sys.stdin.readline()
except OutputExistsError as error:
    sys.exit(2)
"""


def test_of_two_at_once_one_wins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "bundle")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    for child in both:
        assert child.stdout is not None
        child.stdout.readline()
    for child in both:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in both:
        child.communicate()
    assert sorted(child.returncode for child in both) == [0, 2]
    assert set(tree(Bundle.open(tmp_path / "bundle").root)) == {"manifest.json", *FILES}
    assert names(tmp_path) == ["bundle"]


STOPPED = """
import errno, os, shutil, sys
from pathlib import Path
from tests.core.small_bundle import tree, write_small_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import DiskFullError
from tinyllava_edge.parity_files import write_parity

folder, kind, is_there = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "old"
target = folder / "bundle"
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

left = [0]

def stop_at(number):
    left[0] = number
    def hook(event, arguments):
        is_write = event == "os.mkdir" or (event == "open" and (arguments[2] or 0) & writes)
        if not (is_write or (kind == "kill" and event.startswith(("os.", "shutil.", "ctypes.")))):
            return
        left[0] -= 1
        if left[0] == 0:
            if kind == "kill":
                os._exit(9)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sys.addaudithook(hook)

if is_there:
    write_small_bundle(target)
for number in range(1, 1000):
    if is_there:
        write_parity(Bundle.open(target), "verify", {"of": "the old one"})
    child = os.fork()
    if child == 0:
        stop_at(number)
        try:
            write_small_bundle(target, force=is_there)
        except DiskFullError as error:
            os._exit(2 if str(folder) in str(error) and "bytes are needed" in str(error) else 3)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(4)
        os._exit(0 if left[0] > 0 else 5)  # 5: it could do without that operation
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if is_there or target.exists():
        Bundle.open(target)
    others = [path.name for path in folder.iterdir() if path.name != "bundle"]
    assert all(name.startswith(".bundle.tmp-") for name in others), others
    if status == 0:
        print(number)
        break
    assert status in ((9,) if kind == "kill" else (2, 5)), (number, status)
    if status == 2:
        assert not others, (number, others)
        assert (target / "parity").exists() == is_there == target.exists()
    for name in [*others, *(() if is_there else ("bundle",))]:
        shutil.rmtree(folder / name, ignore_errors=True)
"""


@pytest.mark.parametrize("kind", ["kill", "full"])
@pytest.mark.parametrize("before", ["old", "none"])
def test_stopped_at_any_operation_the_old_or_the_new_bundle_is_there(
    tmp_path: Path, kind: str, before: str
) -> None:
    """Each operation in turn is the last: the process is killed there, or the disk is full from there."""
    command = [sys.executable, "-c", STOPPED, str(tmp_path), kind, before]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10  # so many operations there were


def test_a_full_disk_is_named_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"report.json: the disk is full: 5 bytes are needed"):
        write_bytes(tmp_path / "report.json", b"12345")
    assert names(tmp_path) == []


def test_too_little_space_is_said_before_any_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(DiskFullError, match=f"{2 * free:,} bytes are needed"),
        output_directory(tmp_path / "new" / "out", needed=2 * free),
    ):
        raise AssertionError("began")
    assert names(tmp_path) == []


def test_reserved_bytes_are_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"head")
    atomic_files.reserve(tmp_path / "file", 1 << 20)
    status = (tmp_path / "file").stat()
    assert (status.st_size, status.st_blocks * 512 >= 1 << 20) == (1 << 20, True)
    assert (tmp_path / "file").read_bytes()[:5] == b"head\0"
