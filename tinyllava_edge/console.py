"""What the commands print: progress to stderr, results to stdout."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

stdout = Console()
stderr = Console(stderr=True)


def progress() -> Progress:
    """A progress bar on stderr, with the time remaining; it leaves nothing behind in a pipe."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout, for programs."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def json_lines() -> Callable[[object], None]:
    """Writes values to standard output, a line each; whatever a library prints goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return lambda value: print(json.dumps(value), file=channel, flush=True)


def note(text: str) -> None:
    """Say on stderr what was chosen or is going on."""
    stderr.print(text, highlight=False, markup=False, soft_wrap=True)
