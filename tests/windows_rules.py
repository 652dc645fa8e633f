"""Take away what only POSIX has, and keep Windows' rules for open files; in a process of its own.

As documented: MoveFileEx (a rename replaces nothing; an open file, or a directory that holds one, keeps its
name), DeleteFile (an open file stays), CreateFile (a directory is not opened so), FlushFileBuffers (wants a
handle that writes), LoadLibrary (wants a name). os.replace is MoveFileEx with MOVEFILE_REPLACE_EXISTING.
"""

import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODULES = "fcntl resource pwd grp termios tty pty syslog posix_ipc readline"
OF_OS = (
    "getuid geteuid getgid getegid getresuid getpgid setpgid getpgrp setsid killpg fork forkpty sysconf "
    "uname register_at_fork sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate "
    "posix_spawn getloadavg pread pwrite preadv pwritev nice wait wait3 wait4 mkfifo mknod statvfs "
    "fstatvfs chown fchown lchown fchmod fchdir chroot sendfile fdatasync memfd_create pidfd_open "
    "openpty ttyname ctermid O_NOFOLLOW O_CLOEXEC O_DIRECTORY O_NONBLOCK O_SYNC O_NOCTTY O_NOATIME "
    "WNOHANG"
)
OF_SIGNAL = (
    "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD SIGSTOP SIGCONT SIGQUIT SIGBUS alarm setitimer "
    "pause pthread_sigmask pthread_kill sigwait"
)


REALLY: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (os.rename, os.replace, os.unlink, os.open, os.fsync, os.statvfs, ctypes.CDLL)
}


def apply() -> None:
    """From now on this process is as on Windows; what others wrote must have been imported before."""
    _keep_open_files()
    for name in MODULES.split():
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)


def _keep_open_files() -> None:
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
    for function in (_rename, _replace, _unlink):
        setattr(os, function.__name__.lstrip("_"), function)
    os.remove = _unlink
    shutil.disk_usage = _disk_usage  # type: ignore[assignment]  # asks os.statvfs, and on Windows another
    os.open, os.fsync, ctypes.CDLL = _open, _fsync, _load  # type: ignore[assignment,misc]


def _rename(source: Any, target: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "WinError 183", str(target))
    _refuse_open(source)
    REALLY["rename"](source, target)


def _replace(source: Any, target: Any) -> None:
    _refuse_open(source)
    _refuse_open(target)
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, "WinError 5", str(target))
    REALLY["replace"](source, target)


def _unlink(path: Any, **options: Any) -> None:
    _refuse_open(path)
    REALLY["unlink"](path, **options)


def _open(path: Any, flags: int, mode: int = 0o777, **options: Any) -> Any:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "WinError 5", str(path))
    return REALLY["open"](path, flags, mode, **options)


def _fsync(handle: int) -> None:
    flags = int(Path(f"/proc/self/fdinfo/{handle}").read_text().split("flags:")[1].split()[0], 8)
    if flags & 0o3 == os.O_RDONLY:
        raise OSError(errno.EBADF, "WinError 6")
    REALLY["fsync"](handle)


def _disk_usage(path: Any) -> SimpleNamespace:
    found = REALLY["statvfs"](path)
    return SimpleNamespace(total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)


def _load(name: Any, *arguments: Any, **options: Any) -> Any:
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return REALLY["CDLL"](name, *arguments, **options)


def _refuse_open(path: Any) -> None:
    """A file that some handle of this process has, or a directory with one below."""
    wanted = os.path.realpath(path)
    for handle in Path("/proc/self/fd").iterdir():
        held = os.path.realpath(handle)
        if held == wanted or held.startswith(f"{wanted}{os.sep}"):
            raise PermissionError(errno.EACCES, "WinError 32", str(path))
