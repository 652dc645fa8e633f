"""Writing a bundle: it appears whole or not at all, and what was there before is never lost."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.core.small_bundle import (
    FILES,
    change_manifest,
    file_entry,
    seal,
    tree,
    write_files,
    write_small_bundle,
)
from tinyllava_edge import publish
from tinyllava_edge.atomic_files import check_output, output_directory, write_json
from tinyllava_edge.bundle import Bundle, bundle_mark, create_bundle
from tinyllava_edge.errors import BundleError, OutputError, OutputExistsError
from tinyllava_edge.parity_files import write_parity


def assert_only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_files_and_manifest_are_readable_by_everybody(tmp_path: Path) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "manifest.json").stat().st_mode) == 0o644
    assert_only(tmp_path, "bundle")


def test_missing_parents_are_made(tmp_path: Path) -> None:
    assert Bundle.open(write_small_bundle(tmp_path / "a" / "b" / "bundle"))


def test_the_same_files_give_the_same_manifest(tmp_path: Path) -> None:
    first = Bundle.open(write_small_bundle(tmp_path / "first"))
    second = Bundle.open(write_small_bundle(tmp_path / "second"))
    assert first.manifest_sha256 == second.manifest_sha256


def test_nothing_is_there_before_the_end(tmp_path: Path) -> None:
    with create_bundle(tmp_path / "bundle") as writer:
        write_files(writer.root)
        assert not (tmp_path / "bundle").exists()
        seal(writer)
        assert not (tmp_path / "bundle").exists()
    assert_only(tmp_path, "bundle")


@pytest.mark.parametrize("kind", ["bundle", "file", "empty folder", "link", "dangling link"])
def test_an_existing_output_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    if kind == "bundle":
        write_small_bundle(target)
    elif kind == "file":
        target.write_text("mine")
    elif kind == "empty folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path if kind == "link" else "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputExistsError, match=r"bundle: exists already. Give --force"):
        write_small_bundle(target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["bundle", "empty folder", "link", "dangling link"])
def test_force_replaces_it(tmp_path: Path, kind: str) -> None:
    target, elsewhere = tmp_path / "bundle", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if kind == "bundle":
        write_small_bundle(target)
        write_parity(Bundle.open(target), "old", {})
    elif kind == "empty folder":
        target.mkdir()
    else:
        target.symlink_to("elsewhere" if kind == "link" else "nowhere")
    write_small_bundle(target, force=True)
    assert set(tree(target)) == {"manifest.json", *FILES}
    assert not target.is_symlink()
    assert_only(tmp_path, "bundle", "elsewhere")
    assert_only(elsewhere, "kept")


def test_force_never_replaces_a_directory_of_something_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"home: .*--force replaces only"):
        check_output(home, force=True, mark=bundle_mark)
    with pytest.raises(OutputExistsError):
        write_small_bundle(home, force=True)
    assert tree(home) == {"thesis.tex": b"years of work"}
    assert_only(tmp_path, "home")


def test_the_current_directory_can_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_small_bundle(Path("."), force=True)
    assert Bundle.open(tmp_path / "here")
    assert_only(tmp_path, "here")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("sealed", [False, True])
def test_an_interrupted_replacement_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, error: type[BaseException], sealed: bool
) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    before = tree(root)

    def write_part() -> None:
        with create_bundle(root, force=True) as writer:
            write_files(writer.root)
            if sealed:
                seal(writer)
            raise error

    with pytest.raises(error):
        write_part()
    assert tree(root) == before
    assert Bundle.open(root)
    assert_only(tmp_path, "bundle")


def test_a_name_that_opening_would_refuse_is_not_sealed(tmp_path: Path) -> None:
    def write_bad_name() -> None:
        with create_bundle(tmp_path / "bundle") as writer:
            (writer.root / "bad name").touch()
            seal(writer)

    with pytest.raises(BundleError, match="not a plain path"):
        write_bad_name()
    assert_only(tmp_path)


@pytest.mark.parametrize("name", ["fp16.plan", "vision/fp16.ENGINE", "custom_op.so", "model.trt", "run.py"])
def test_an_engine_or_other_code_is_never_in_a_bundle(tmp_path: Path, name: str) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    (root / name).write_bytes(b"code")
    change_manifest(root, lambda manifest: manifest["files"].append(file_entry(name, b"code")))
    with pytest.raises(BundleError, match="never holds code or engines"):
        Bundle.open(root)


@pytest.mark.parametrize("failure", [OSError("no space"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_failed_rename_puts_the_old_bundle_back(
    tmp_path: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    before = tree(root)
    rename = Path.rename

    def fails_for_new(self: Path, target: Path) -> Path:
        if ".tmp-" in self.parent.name:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(publish, "_renamed", lambda *arguments: False)
    monkeypatch.setattr(Path, "rename", fails_for_new)
    with pytest.raises(type(failure)):
        write_small_bundle(root, force=True)
    assert tree(root) == before
    assert_only(tmp_path, "bundle")


def test_what_cannot_be_put_back_is_kept_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    before = tree(root)
    rename = Path.rename

    def fails_onto_target(self: Path, target: Path) -> Path:
        if Path(target).name == "bundle":
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(publish, "_renamed", lambda *arguments: False)
    monkeypatch.setattr(Path, "rename", fails_onto_target)
    with pytest.raises(OSError, match="the disk is gone"):
        write_small_bundle(root, force=True)
    [aside] = tmp_path.iterdir()
    assert tree(aside / "old") == before


@contextmanager
def small_files_only(limit: int) -> Iterator[None]:
    """Let writing fail with EFBIG, as a full disk does with ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit", [0, 100, 1000], ids=["first file", "a later file", "manifest"])
def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path, limit: int) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    before = tree(root)
    with small_files_only(limit), pytest.raises(OSError, match="File too large"):
        write_small_bundle(root, force=True)
    assert tree(root) == before
    assert_only(tmp_path, "bundle")


def test_what_a_library_cannot_write_names_the_output(tmp_path: Path) -> None:
    """NumPy says how many items it wrote, and not where."""
    with (
        pytest.raises(OutputError, match=r"out: 10000 requested and \d+ written"),
        output_directory(tmp_path / "out") as work,
        small_files_only(100),
    ):
        np.zeros(10_000).tofile(work / "array")
    assert_only(tmp_path)


def test_a_json_file_that_cannot_be_written_keeps_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with small_files_only(10), pytest.raises(OSError, match="File too large"):
        write_json(path, {"a": "x" * 10_000})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n "a": 1\n}'
    assert_only(tmp_path, "report.json")


def test_an_output_directory_is_removed_when_the_work_fails(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with output_directory(tmp_path / "out") as work:
            (work / "partial").touch()
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail_midway()
    assert_only(tmp_path)


KILLED = """
import itertools, sys
from pathlib import Path
from tests.core.small_bundle import write_small_bundle
target = Path(sys.argv[1])
for index in itertools.count():
    write_small_bundle(target, force=True)
    print(index, flush=True)
"""


@pytest.mark.parametrize("delay_ms", [0, 1, 3, 7, 12])
def test_a_killed_writer_leaves_a_whole_bundle_or_none(tmp_path: Path, delay_ms: int) -> None:
    target = tmp_path / "bundle"
    command = [sys.executable, "-c", KILLED, str(target)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    child.stdout.readline()  # the first one is written
    time.sleep(delay_ms / 1000)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    hidden = [path for path in tmp_path.iterdir() if path.name != "bundle"]
    assert all(path.name.startswith(".bundle.") for path in hidden)
    if not target.exists():  # killed between the two renames: the old one is beside
        [aside] = [path for path in hidden if ".old-" in path.name]
        target = aside / "old"
    assert Bundle.open(target)


def test_what_a_killed_verify_leaves_does_not_spoil_the_bundle(tmp_path: Path) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    bundle = Bundle.open(root)
    left_over: list[str] = []

    def killed(source: object, target: object) -> None:
        left_over.extend(os.listdir(root / "parity"))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_parity(bundle, "verify", {})
    (root / "parity" / left_over[0]).write_text("{")  # as if nothing had cleaned up
    assert Bundle.open(root)
