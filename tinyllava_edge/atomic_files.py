"""Outputs appear whole or not at all: written beside their place, made durable, then renamed.

Nothing is replaced without `force`, whenever it appears, and with it only what this program wrote. A kill at
any moment leaves the old output or the new one, where the system can swap two names (Linux' renameat2).
"""

import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyllava_edge.errors import (
    DiskFullError,
    ExportError,
    OutputExistsError,
    TinyLlavaEdgeError,
    UsageError,
)

# Why an existing output may not be replaced, "" where this program wrote it; may raise what reading raises.
Mark = Callable[[Path], str]
_NO_REPLACE, _EXCHANGE = 1, 2  # RENAME_NOREPLACE, RENAME_EXCHANGE of Linux' fs.h
_HERE = -100  # AT_FDCWD
_NOT_KNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)  # by the file system, or the kernel
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM = 1 << 16  # bytes: libraries that hide the system's error fail with less than this


def no_mark(target: Path) -> str:
    """Of an output that is never replaced."""
    return "is no output of this command"


def check_output(
    target: Path, *, force: bool, mark: Mark = no_mark, sources: Iterable[Path | None] = ()
) -> None:
    """Refuse an output before any work is done.

    An empty directory may be replaced, and a link, which is then no link any more: what it leads to stays.

    Args:
        target: what is to be written.
        force: replace what is there, if it is this program's own.
        mark: tells that.
        sources: what the command reads, as in `check_apart`.

    Raises:
        OutputExistsError: `target` exists, and `force` is false or it is something else.
        UsageError: as `check_apart`.
    """
    check_apart(target, sources)
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputExistsError(f"{target}: exists already. Give --force to replace it.")
    if target.is_symlink() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        fault = mark(target)
    # Whatever it is, it is not ours.
    except (OSError, ValueError, LookupError, TypeError, RecursionError, TinyLlavaEdgeError):
        fault = no_mark(target)
    if fault:
        raise OutputExistsError(
            f"{target}: {fault}. --force replaces only what this command wrote: remove it yourself, or "
            "choose another name."
        )


def check_apart(target: Path, sources: Iterable[Path | None]) -> None:
    """Refuse an output that is, holds or lies in what a command reads; links and mounts are seen through.

    Args:
        target: the output.
        sources: files and directories; None and what is not there are passed over.

    Raises:
        UsageError: it does; the message names both.
    """
    place = _settled(target)
    own, *above = _identities(place)
    around = {own, *above, *_identities(place.parent)} - {None}
    for source in sources:
        if source is None or not os.path.exists(source):
            continue
        identity, *folders = _identities(source)
        if identity in around:
            relation = "is" if identity == own else "lies in"
        elif own is not None and (own in folders or any(own in _identities(p) for p in _links(source))):
            relation = "holds"
        else:
            continue
        raise UsageError(f"{target}: {relation} {source}, which this command reads. Choose another place.")


def pictures_read(images: Path | None, data: Path | None) -> Path | None:
    """A folder of pictures as a source; not the one that the data file is in, where outputs go too."""
    if images and data and os.path.realpath(images) == os.path.realpath(data.parent):
        return None
    return images


def foreign_file(root: Path, is_known: Callable[[str], bool]) -> str:
    """In a mark: names the first file or link below `root` whose relative name is not known, or is ""."""
    for folder, folders, files in os.walk(root, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted((*files, *links)):
            relative = Path(folder, name).relative_to(root).as_posix()
            if not is_known(relative):
                return f"holds {relative}, which this command did not write"
    return ""


@contextmanager
def output_directory(
    target: Path, *, force: bool = False, mark: Mark = no_mark, needed: int = 0
) -> Iterator[Path]:
    """A directory beside `target` that takes its place on success, and is removed on failure.

    Args:
        target: where it will be.
        force: replace what is there, if it is this program's own.
        mark: tells that.
        needed: bytes that it will have at least.

    Raises:
        OutputExistsError: as `check_output`, also for what appears during the work.
        DiskFullError: there is no room.
    """
    target = _settled(target)
    check_output(target, force=force, mark=mark)
    check_space(target, needed)
    with full_disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        with full_disk_named(target, lambda: max(needed, _size(work) + 1)):
            yield work
            work.chmod(0o755)
            _publish(work, target, force=force, mark=mark)
    finally:
        _remove(work)


@contextmanager
def output_file(
    target: Path, *, force: bool = False, mark: Mark = no_mark, mode: int = 0o644
) -> Iterator[Path]:
    """An empty file beside `target` that takes its place on success, likewise."""
    target = _settled(target)
    check_output(target, force=force, mark=mark)
    with full_disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.tmp-", dir=target.parent)
    os.close(handle)
    work = Path(name)
    try:
        with full_disk_named(target, lambda: work.stat().st_size + 1):
            yield work
            fsync(work)
            work.chmod(mode)
            _publish(work, target, force=force, mark=mark)
    finally:
        _remove(work)


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    """Write a JSON file that is complete whenever it is seen."""
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode(), mode=mode)


def write_bytes(path: Path, content: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write a file that is complete whenever it is seen; one that is there is replaced."""
    with full_disk_named(path, lambda: len(content)):
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


def reserve(path: Path, size: int) -> None:
    """Give a file that many bytes on the disk: to write to a mapped hole of a full one is a SIGBUS.

    Raises:
        DiskFullError: there is no room.
    """
    with full_disk_named(path, lambda: size), path.open("r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
        file.seek(0, os.SEEK_END)
        while missing := size - file.tell():
            file.write(bytes(min(missing, 1 << 20)))


def check_space(path: Path, needed: int) -> None:
    """Look at the free space before any work.

    Raises:
        DiskFullError: it is less than `needed` bytes.
    """
    if _free(path) < needed:
        raise _disk_full(path, needed)


@contextmanager
def full_disk_named(path: Path, needed: Callable[[], int] = lambda: 1) -> Iterator[None]:
    """What a full disk makes of the body becomes a DiskFullError with the path and the bytes needed."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        known = getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)
        temporary = Path(tempfile.gettempdir())
        full = next((place for place in (path, temporary) if _free(place) < _NO_ROOM), None)
        is_vague = isinstance(error, (OSError, RuntimeError, ExportError)) and not getattr(error, "errno", 0)
        if known or (full and is_vague):
            raise _disk_full(full or path, needed()) from error
        raise


def _disk_full(path: Path, needed: int) -> DiskFullError:
    return DiskFullError(
        f"{path}: the disk is full: {needed:,} bytes are needed there at least, {_free(path):,} are free. "
        "Make room, or choose a place on another disk."
    )


def _free(path: Path) -> int:
    """Bytes free on the disk that a path, which need not be there, is on."""
    path = _settled(path)
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def _size(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*"))


def _settled(path: Path) -> Path:
    """The path of a name as the system finds it; a link in its last place stays one."""
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)


def _identities(path: Path) -> list[tuple[int, int] | None]:
    """Device and inode of what a path leads to and of each directory above; None where nothing is."""
    found: list[tuple[int, int] | None] = []
    resolved = Path(os.path.realpath(path))
    for place in (resolved, *resolved.parents):
        try:
            status = place.stat()
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found


def _links(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        yield from (path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink())


def _publish(work: Path, target: Path, *, force: bool, mark: Mark) -> None:
    """Give `work` the name `target`; afterwards `work` is what was replaced, or is not there."""
    check_output(target, force=force, mark=mark)
    try:
        if force and os.path.lexists(target):
            if not _renamed(work, target, _EXCHANGE):
                _replace_in_turn(work, target)
        elif not _renamed(work, target, _NO_REPLACE):
            _claim(work, target)
    except FileExistsError:
        raise OutputExistsError(
            f"{target}: appeared while it was being written, and stays. Choose another name."
        ) from None
    fsync(target.parent)


def _renamed(work: Path, target: Path, flag: int) -> bool:
    """Rename as Linux' renameat2 does; false, with a word, where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    code = errno.ENOSYS
    if rename is not None:
        if rename(_HERE, os.fsencode(work), _HERE, os.fsencode(target), flag) == 0:
            return True
        code = ctypes.get_errno()
    if code not in _NOT_KNOWN:
        raise OSError(code, os.strerror(code), str(target))
    sys.stderr.write(
        f"{target.parent}: cannot swap names in one step here ({os.strerror(code)}), so a kill right now "
        f"would leave {target.name} empty, or the old one beside it in .{target.name}.old-*\n"
    )
    return False


def _claim(work: Path, target: Path) -> None:
    """Make the name, which fails where there is one, and rename over what was just made."""
    is_folder = work.is_dir()
    if is_folder:
        target.mkdir()
    else:
        target.touch(exist_ok=False)
    try:
        work.rename(target)
    except BaseException:
        with suppress(OSError):
            target.rmdir() if is_folder else target.unlink()
        raise


def _replace_in_turn(work: Path, target: Path) -> None:
    """Move `target` aside, and back on failure."""
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


def _remove(path: Path) -> None:
    """Remove a directory, file or link; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _raise(error: OSError) -> None:
    raise error
