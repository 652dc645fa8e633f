"""Peak anonymous memory of this process and its children, watched from a process of its own.

Anonymous memory (Linux: RssAnon and RssShmem in /proc/PID/status, proc_pid_status(5)) is what a program took;
pages of mapped files, which the system may drop and read again, do not count. The kernel keeps a peak only of
both together (VmHWM), so the figure is sampled, and by another process: a thread would wait while a library
that holds Python's lock takes its memory.
"""

import ctypes
import gc
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL_S = 0.01
_ANSWER_S = 10.0  # in which the watching process answers
_M_MMAP_THRESHOLD = -3  # malloc.h


class Watch:
    """What the watching process has seen so far."""

    def __init__(self, process: "subprocess.Popen[bytes] | None") -> None:
        self._process = process

    def peak_bytes(self) -> int | None:
        """The peak since the watch began, or since the last call.

        None where the system does not tell, and for good once the watching process was killed or stopped:
        what it saw is gone with it.
        """
        if self._process is None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(b"\n")
            if select.select([self._process.stdout], [], [], _ANSWER_S)[0]:
                return int(self._process.stdout.readline())
        self._process = None
        return None


@contextmanager
def watched_memory() -> Iterator[Watch]:
    """Watch this process until the block ends."""
    if anonymous_bytes(os.getpid()) is None:
        yield Watch(None)
        return
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    except OSError:  # no more processes, no more memory
        yield Watch(None)
        return
    with process:
        try:
            yield Watch(process)
        finally:
            process.kill()  # it would also end when its standard input does, unless somebody stopped it


def anonymous_bytes(pid: int) -> int | None:
    """What a process holds now; None where the system does not tell, or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(int(words[1]) * 1024 for words in found) if found else None


def peak_memory_bytes() -> int:
    """Most memory this process has held, shared libraries and mapped weights included.

    Linux hands the parent's peak down through `ru_maxrss`, so the program's own mark (VmHWM) is read there.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return int(found[1]) << 10
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def return_large_blocks() -> None:
    """From now on give blocks of a megabyte and more back to the system as soon as they are freed.

    glibc learns to keep them, up to 32 MB each: a cache of keys and values, which is copied to a larger place
    with every token, left 2 GB of holes behind. M_MMAP_THRESHOLD, mallopt(3).
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none of that name
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def return_freed_memory() -> None:
    """Collect garbage, and give back what was freed."""
    gc.collect()
    return_holes()


def return_holes() -> None:
    """Give back to the system what was freed; glibc keeps it, malloc_trim(3)."""
    with suppress(AttributeError, OSError, TypeError):  # another C library; Windows' CDLL(None)
        ctypes.CDLL(None).malloc_trim(0)


def _descendants(pid: int) -> Iterator[int]:
    """A process and those it started, without the one that asks."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text(encoding="ascii").split()
        except OSError:  # the thread has ended
            continue
        for child in map(int, children):
            if child != os.getpid():
                yield from _descendants(child)


def _watch(pid: int) -> None:
    """Sample until standard input ends; a line there asks for the peak."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the one that it watches
        signal.signal(number, signal.SIG_IGN)
    peak = 0
    while True:
        peak = max(peak, sum(anonymous_bytes(each) or 0 for each in _descendants(pid)))
        if select.select([sys.stdin], [], [], INTERVAL_S)[0]:
            if not sys.stdin.readline():
                return
            sys.stdout.write(f"{peak}\n")
            sys.stdout.flush()
            peak = 0


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
