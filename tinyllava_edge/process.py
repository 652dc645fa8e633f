"""How the program starts and ends: its standard streams, what stops it, its exit codes; how much it says.

A command that is stopped unwinds as from Ctrl-C, so that every `with` removes what was being written. The
codes are the shell's: 128 and the number of the signal.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from tinyllava_edge.printable import printable

USER_ERROR, INTERRUPTED, NO_READER = 2, 128 + signal.SIGINT, 128 + 13  # Windows has no SIGPIPE
STREAMS = ("standard input", "standard output", "standard error")
_AGAIN_S, _IMPORT_S = 0.05, 0.005
_BEGUN = time.monotonic()


class Talk:
    """How much the program says on standard error: it is -q or -v that changes this.

    Attributes:
        quiet: nothing but errors.
        verbose: what is done, too.
    """

    quiet = verbose = False


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: unlike Ctrl-C it ends the program, whatever it is doing."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an exception in the middle of a native one can end in a crash."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopSignals:
    """Turns the signals that ask a program to stop into exceptions; one that the caller ignores stays so.

    Where a module is being imported the exception waits until that has ended.
    """

    def __init__(self) -> None:
        self.terminated: Terminated | None = None
        self.waits = False
        if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
            signal.signal(signal.SIGINT, self._interrupt)  # not that of `__main__`
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP, and no timer
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._stop)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self._interrupt)
            sys.unraisablehook = self._seen

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.terminated is None:  # a second one must not disturb the clearing up
            self.terminated = Terminated(number)
            self._interrupt(number, frame)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.waits = _is_importing(frame) and hasattr(signal, "setitimer")
        if not self.waits:
            raise self.terminated or KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _IMPORT_S)

    def raise_waiting(self) -> None:
        """At the end: what still waits, which Python would die by a moment later."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.waits:
            raise self.terminated or KeyboardInterrupt

    def _seen(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """One that stops, and was lost in a library's callback, is raised again a moment later."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            sys.__unraisablehook__(unraisable)


class _Output(io.TextIOWrapper):
    """A standard stream that names itself in what the system says of it."""

    def write(self, text: str) -> int:
        with self._named():
            return super().write(text)

    def flush(self) -> None:
        with self._named():
            super().flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = STREAMS[self.fileno()]
            raise


def run_program(command: Callable[[], object]) -> NoReturn:
    """Run what prints results and ends by `sys.exit`, and end as it or a signal says."""
    open_streams()
    stops = StopSignals()
    try:
        code = _run(command)
        stops.raise_waiting()
    except BaseException as error:
        found = _exit_code(stops.terminated or stop_behind(error) or error)
        if found is None:
            raise
        code = found
    if stops.terminated is not None:  # also where a library made another error of it
        code = stops.terminated.exit_code
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # what is still to be written has nowhere to go
    exec("")  # Python remembers a Ctrl-C in a library's `exec`, and would die by the signal at its very end
    sys.exit(code)


def stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """What asked the program to stop, where a library made an error of it: "numpy cannot be imported"."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _run(command: Callable[[], object]) -> int:
    """The exit code of a command, whose output has been handed over."""
    code: object = 0
    try:
        command()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich makes 1 of it
            return NO_READER
        code = ended.code
    sys.stdout.flush()  # where a full disk, or a reader that has gone, is seen
    return code if isinstance(code, int) else 0


def _exit_code(error: BaseException) -> int | None:
    """The code of what ends a command from outside, which is said; None of an error of ours."""
    if isinstance(error, KeyboardInterrupt):
        say("stopped.")
        return INTERRUPTED
    if not isinstance(error, OSError) or error.filename not in STREAMS:
        return None
    if isinstance(error, BrokenPipeError):
        return NO_READER
    say(f"{error.filename}: {error.strerror}.")
    return USER_ERROR


def open_streams() -> None:
    """Open standard streams that are closed on nothing, so that no file of ours gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
        stream: Any = getattr(sys, name) or open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
        if number:
            how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            encoding, stream = stream.encoding, stream.detach()
            stream = _Output(stream, encoding, "backslashreplace", **how)  # a name need not be text
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def detail(text: str) -> None:
    """With -v, say on standard error what is done, and when: the core needs no rich for it."""
    if Talk.verbose:
        say(text, f"{time.monotonic() - _BEGUN:8.2f} s")


def say(text: str, begin: str = "tinyllava-edge") -> None:
    """One line on standard error, which may be full; a line end in a name is written out."""
    with suppress(OSError):
        sys.stderr.write(f"{begin}: {printable(text.strip(), line_ends=True)}\n")
