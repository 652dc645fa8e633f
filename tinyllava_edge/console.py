"""What the commands print: progress to stderr, results to stdout."""

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

# C0 but for tab and line feed, DEL, C1: what a terminal obeys; what turns the order of text around; and half
# surrogate pairs, which no encoding has.
_OBEYED = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Text of a file or a user for a terminal: what it would obey is written out, as `\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _SafeConsole(Console):
    """Obeys no markup and no control characters in what it prints."""

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:  # before it is measured
        return super().render_str(printable(text), *args, **{**options, "markup": False})


stdout = _SafeConsole(markup=False, emoji=False)
stderr = _SafeConsole(stderr=True, markup=False, emoji=False)


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
    stderr.print(text, highlight=False, soft_wrap=True)
