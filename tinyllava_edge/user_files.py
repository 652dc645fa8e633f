"""The one door for a file that a user names: only regular files are opened, within a size.

A pipe or a device may never end, and to open one may wait for ever. What the shell did not expand is a plain
name: `~` is one, too.
"""

import errno
import os
import stat
from io import BufferedReader

from tinyllava_edge.errors import FileError, TinyLlavaEdgeError

MAX_TEXT_BYTES = 4 << 30  # of data and lists; the largest public set of conversations has 1 GB
MAX_CONFIG_BYTES = 256 << 20  # of a checkpoint's small files; large tokenizers have 35 MB
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_user_file(
    path: str | os.PathLike[str], *, most: int = MAX_TEXT_BYTES, error: type[TinyLlavaEdgeError] = FileError
) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: links are followed.
        most: bytes that it may have.
        error: what is raised.

    Raises:
        FileError: or `error`: it is not there, cannot be read, is no regular file or too large.
    """
    try:
        _check(os.stat(path), path, most, error)
        handle = os.open(path, _READ)
        try:
            _check(os.fstat(handle), path, most, error)  # it may be another one by now
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as fault:
        if isinstance(fault, TinyLlavaEdgeError):
            raise
        raise error(f"{os.fspath(path)}: cannot be read: {_reason(fault, path)}. Check the path.") from None
    return os.fdopen(handle, "rb")


def read_user_file(
    path: str | os.PathLike[str], *, most: int = MAX_TEXT_BYTES, error: type[TinyLlavaEdgeError] = FileError
) -> bytes:
    """What is in a regular file; arguments and errors as `open_user_file`."""
    try:
        with open_user_file(path, most=most, error=error) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size + 1) or b""
            if len(content) > size:  # it grows, or is of /proc, where files have no size
                content += file.read(most - size) or b""
    except OSError as fault:
        if isinstance(fault, TinyLlavaEdgeError):
            raise
        raise error(f"{os.fspath(path)}: cannot be read: {_reason(fault, path)}. Check its disk.") from None
    if len(content) > most:
        raise error(f"{os.fspath(path)}: more bytes than it says, expected at most {most:,}.")
    return content


def read_user_text(
    path: str | os.PathLike[str], *, most: int = MAX_TEXT_BYTES, error: type[TinyLlavaEdgeError] = FileError
) -> str:
    """The text of a regular file; arguments and errors as `open_user_file`, also for what is not UTF-8."""
    try:
        return read_user_file(path, most=most, error=error).decode()
    except UnicodeDecodeError as fault:
        raise error(f"{os.fspath(path)}: not UTF-8 ({fault.reason} at byte {fault.start}).") from None


def _check(
    status: os.stat_result, path: str | os.PathLike[str], most: int, error: type[TinyLlavaEdgeError]
) -> None:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise error(f"{os.fspath(path)}: cannot be read: not a file, but {kind}. Give the path of a file.")
    if status.st_size > most:
        raise error(f"{os.fspath(path)}: {status.st_size:,} bytes, expected at most {most:,}.")


def _reason(fault: OSError | ValueError, path: str | os.PathLike[str]) -> str:
    if isinstance(fault, ValueError):  # a NUL in the name
        return f"no such file ({fault})"
    if fault.errno == errno.ELOOP:
        return "a link that leads to itself"
    if fault.errno == errno.ENOENT and os.path.islink(path):
        return f"a link to {os.readlink(path)}, which is not there"
    if fault.errno == errno.ENOENT:
        return "no such file"
    return str(fault.strerror)
