"""The program: `tinyllava-edge`, or `python -m tinyllava_edge`."""

import os
import signal
from contextlib import suppress


def _stop(number: int, frame: object) -> None:
    with suppress(OSError):
        os.write(2, b"tinyllava-edge: stopped.\n")
    os._exit(128 + number)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)  # a Ctrl-C before `run_program` is no traceback; it sets it anew

from importlib import import_module  # noqa: E402
from typing import NoReturn  # noqa: E402

from tinyllava_edge.process import run_program  # noqa: E402


def main() -> NoReturn:
    """Run the command line, imported when signals are handled."""
    run_program(lambda: import_module("tinyllava_edge.cli").main())


if __name__ == "__main__":
    main()
