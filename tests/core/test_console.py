"""What files and users wrote reaches a terminal as text that it does not obey."""

import io
import json
from contextlib import suppress
from pathlib import Path

import pytest
from rich.table import Table

from tinyllava_edge import console as ours
from tinyllava_edge.atomic_files import output_file
from tinyllava_edge.console import _SafeConsole, print_json, progress
from tinyllava_edge.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\rb\x9bc", "a\\rb\\x9bc"),
        ("in\u202eturn\u2066ed", "in\\u202eturn\\u2066ed"),
        ("tab\tline\n\u4e2d\U0001f600", "tab\tline\n\u4e2d\U0001f600"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_console_obeys_neither_control_characters_nor_markup() -> None:
    file = io.StringIO()
    console = _SafeConsole(file=file, force_terminal=True, color_system="truecolor", markup=False, width=200)
    table = Table("name\x1b]0;title\x07", title="of \x1b[2J")
    table.add_row("[red]x[/red] :smile: \x1b[1A")
    console.print(table)
    console.print("\x1b[2J[bold]loud[/bold]", highlight=False)
    shown = file.getvalue()
    for part in ("[red]x[/red]", "\\x1b[1A", "name\\x1b]0;title\\x07", "\\x1b[2J[bold]loud[/bold]"):
        assert part in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]" not in shown


def test_a_progress_bar_obeys_nothing_in_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(ours, "stderr", _SafeConsole(file=file, force_terminal=True, width=100))
    with progress() as bar:
        bar.add_task("bench [red]a\x1b]0;b\x07\n", total=1)
    assert r"bench [red]a\x1b]0;b\x07\n" in file.getvalue()


def test_json_is_the_same_value_without_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "a\x1b\x7f\x9b\u202eé"}
    print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == {**value, "schema": 1}
    assert printed == '{"name": "a\\u001b\\u007f\\u009b\\u202eé", "schema": 1}\n'


def test_a_full_standard_error_ends_no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(ours.stderr, "_file", full)
        with output_file(tmp_path / "out") as work:
            ours.note("x" * 100_000)
            work.write_bytes(b"whole")
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert (tmp_path / "out").read_bytes() == b"whole"
