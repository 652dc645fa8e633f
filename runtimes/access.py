"""Who may use a model: one thread at a time, of the process that opened it, where it is freed once.

A stream that a thread reads is that thread's until it has ended; who asks meanwhile waits for it.

Native libraries keep threads and pools that a fork does not copy: to compute with them, or to free them, in a
child would wait for ever. So a child is refused, and what the parent opened stays in it until it ends.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from tinyllava_edge.errors import BackendError

Native = TypeVar("Native")
_LOOK_S = 0.1  # between two looks at whether a thread has died: nothing tells that


class Access:
    """The calls of one model: another thread's wait for the one that runs."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._turn = threading.Condition(threading.Lock())
        self._thread: int | None = None  # whose call runs

    @property
    def is_here(self) -> bool:
        """Whether this is the process that opened the model."""
        return os.getpid() == self._process

    @contextmanager
    def call(self) -> Iterator[None]:
        """Alone with the model until the block ends.

        Raises:
            BackendError: in another process, or in a call of this thread that has not ended, as a signal
                handler or a finalizer may be.
        """
        if not self.is_here:
            raise BackendError(
                f"the model was opened in process {self._process}, this is process {os.getpid()}: a model "
                "cannot be used after a fork. Open it in this process."
            )
        if self._thread == threading.get_ident():
            raise BackendError(
                "the model is called again while a call of the same thread runs. Wait until that one is done."
            )
        with self._turn:
            try:
                self._thread = threading.get_ident()
                yield
            finally:
                self._thread = None

    def tell(self) -> None:
        """Within a call: a stream has ended, so look again."""
        self._turn.notify_all()

    def let_others(self) -> None:
        """Within a call, let other threads' calls be made until one of them tells, or for a moment."""
        self._thread = None
        try:
            self._turn.wait(_LOOK_S)
        finally:
            self._thread = threading.get_ident()


def freed_with(
    owner: object, native: Native, free: Callable[[Native], None] = lambda native: None
) -> Callable[[], object]:
    """Free what a library holds when its owner is dropped, the program ends, or the result is called.

    That happens once, and only in this process; a forked child keeps `native` for ever.

    Args:
        owner: who uses it; `native` and `free` must not refer to it.
        native: what the library gave; holding it is what keeps it alive.
        free: frees it, where dropping it does not.
    """
    return weakref.finalize(owner, _free, os.getpid(), native, free)


def _free(process: int, native: Native, free: Callable[[Native], None]) -> None:
    if os.getpid() == process:
        free(native)
    else:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


@cache
def let_forks_end() -> None:
    """From now on a forked child ends without C's exit handlers.

    Those of ONNX Runtime 1.32 and OpenVINO 2026.4 wait there for ever for a thread that a fork does not copy
    (docs/sources/openvino.md#a-forked-child).
    """
    if not hasattr(os, "fork"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc's, which hands the exit code on
        os.register_at_fork(after_in_child=lambda: library.on_exit(library._exit, None))
