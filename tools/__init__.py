"""Commands for who works on this repository: they make what its pages show. Not installed."""

import sys
from collections.abc import Callable

import typer

from tinyllava_edge.console import note
from tinyllava_edge.errors import TinyLlavaEdgeError


def run(main: Callable[..., None]) -> None:
    """Run a command with the words that it was given; a user's mistake is one line, and exit code 2."""
    try:
        typer.run(main)
    except TinyLlavaEdgeError as error:
        note(str(error))
        sys.exit(2)
