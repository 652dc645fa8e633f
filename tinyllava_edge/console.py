"""What the commands print: progress to stderr, results to stdout."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from tinyllava_edge.printable import OBEYED, printable
from tinyllava_edge.process import Talk

JSON_SCHEMA = 1  # counted up when a field of docs/json.md goes or means something else


class _SafeConsole(Console):
    """Obeys no markup and no control characters in what it prints."""

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:  # before it is measured
        return super().render_str(printable(text), *args, **{**options, "markup": False})


# https://no-color.org: neither colour nor what is bold or dim.
_PLAIN: dict[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
stdout = _SafeConsole(markup=False, emoji=False, **_PLAIN)
stderr = _SafeConsole(stderr=True, markup=False, emoji=False, **_PLAIN)
_FIRST_LINE_S, _LAST_PAUSE_S = 10.0, 60.0


class _Description(ProgressColumn):
    """What a bar is of, names of files among it."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description, line_ends=True))


class _Lines(Progress):
    """Progress where there is no terminal: a line after ten seconds, then ever rarer, to one a minute."""

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._ended = Event()

    def start(self) -> None:
        super().start()
        if self.disable and not Talk.quiet:
            Thread(target=self._report, daemon=True).start()

    def stop(self) -> None:
        self._ended.set()
        super().stop()

    def _report(self) -> None:
        pause = _FIRST_LINE_S
        while not self._ended.wait(pause):
            pause = min(2 * pause, _LAST_PAUSE_S)
            tasks = [task for task in self.tasks if task.description]
            said = [
                f"{t.description}: {t.completed:g} of {t.total:g}" if t.total else t.description
                for t in tasks
            ]
            if said:
                note(printable(f"{', '.join(said)}, {tasks[0].elapsed or 0:.0f} s", line_ends=True))


def progress() -> Progress:
    """A progress bar on stderr, with the time remaining; lines in a pipe, unless it is quick."""
    return _Lines(
        _Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=Talk.quiet or not stderr.is_terminal,
    )


def print_json(value: dict[str, Any]) -> None:
    """Print one line of JSON on stdout, for programs; what a terminal would obey is escaped.

    At its end stands `schema`, the version of all that commands print: docs/json.md.
    """
    only_ascii = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
    text = json.dumps({**value, "schema": JSON_SCHEMA}, ensure_ascii=only_ascii, allow_nan=False)
    sys.stdout.write(OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    sys.stdout.flush()


def json_lines() -> Callable[[object], None]:
    """Writes values to standard output, a line each; whatever a library prints goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return lambda value: print(json.dumps(value), file=channel, flush=True)


def note(text: str, *, is_fault: bool = False) -> None:
    """Say on stderr what was chosen or is going on; the work does not end where that is full or closed.

    Args:
        text: a line.
        is_fault: something went wrong, which `-q` does not hide.
    """
    if is_fault or not Talk.quiet:
        with suppress(OSError):
            stderr.print(text, highlight=False, soft_wrap=True)
