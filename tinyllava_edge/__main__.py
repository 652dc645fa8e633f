"""The program: `tinyllava-edge`, or `python -m tinyllava_edge`."""

from importlib import import_module
from typing import NoReturn

from tinyllava_edge.process import run_program


def main() -> NoReturn:
    """Run the command line, imported when signals are handled."""
    run_program(lambda: import_module("tinyllava_edge.cli").main())


if __name__ == "__main__":
    main()
