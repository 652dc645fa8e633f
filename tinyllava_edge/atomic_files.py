"""Outputs appear whole or not at all: written beside their place, made durable, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllava_edge.errors import OutputExistsError

# --force replaces a directory only if it holds one of these: it is a bundle, a checkpoint or a report.
_OWN_FILES = ("manifest.json", "config.json", "report.json")


def check_output(target: Path, *, force: bool) -> None:
    """Refuse an existing output before any work is done.

    Raises:
        OutputExistsError: `target` exists, and `force` is false or it is a directory of something else.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputExistsError(f"{target}: exists already. Give --force to replace it.")
    is_full = target.is_dir() and not target.is_symlink() and any(target.iterdir())
    if is_full and not any((target / name).is_file() for name in _OWN_FILES):
        raise OutputExistsError(
            f"{target}: --force replaces bundles, checkpoints and reports, and this directory is none. "
            "Remove it yourself, or choose another name."
        )


@contextmanager
def output_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory beside `target` that takes its place on success, and is removed on failure."""
    target = Path(os.path.abspath(target))  # gives `.` a name and a parent
    check_output(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        _replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    """Write a JSON file that is complete whenever it is seen."""
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode(), mode=mode)


def write_bytes(path: Path, content: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write a file that is complete whenever it is seen."""
    # The suffix is kept: what a killed process leaves in a bundle's parity/ is allowed there.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(work: Path, target: Path) -> None:
    """Rename `work` to `target`; an existing target is moved aside first, and put back on failure."""
    if not os.path.lexists(target):
        work.rename(target)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        try:
            target.rename(aside / "old")
            work.rename(target)
        except BaseException:
            if os.path.lexists(aside / "old"):
                (aside / "old").rename(target)
            aside.rmdir()  # never rmtree: what could not be put back stays there
            raise
        shutil.rmtree(aside, ignore_errors=True)
    fsync(target.parent)
