"""What holds for every command: help, completion, hints, how much is said, colours, Ctrl-C, option names."""

import inspect
import os
import pty
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from tests.test_cli import assert_one_line, run
from tinyllava_edge import console
from tinyllava_edge.cli import COMMANDS, OLD_OPTIONS, app
from tinyllava_edge.process import INTERRUPTED, Talk, stop_behind

ROOT = Path(__file__).parents[1]
STOPPED = "tinyllava-edge: stopped.\n"
# Options whose value is of another kind somewhere, and why that is no trap.
SEVERAL_KINDS = {
    "--tokens": "of a picture; in bench of every answer",
    "--checkpoint": "needed, or not; of several bundles, several",
    "--data": "a benchmark's, or the data files of a training",
    "--images": "a folder, or one for each data file of a training",
    "--device": "a board's name, needed or not; a GPU's number is --gpu",
    "--language": "one variant, or several, comma-separated",
    "--vision": "one variant, or several, comma-separated",
    "--output": "needed, or not",
    "--seed": "drawn at random where none is given, but by train",
    "--threads": "all usable cores where none are given, but by train",
}
AT_IMPORT = """
import os, signal, sys
class Strikes:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["STRUCK"]:
            os.environ["STRUCK"] = ""
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10**6): pass
            except KeyboardInterrupt as stop:  # as a library made with pybind11 does
                open(os.environ["RAISED"], "w").close()
                raise ImportError("initialization failed") from stop
sys.meta_path.insert(0, Strikes())
"""


def options() -> Iterator[tuple[str, inspect.Parameter, Any]]:
    """Command, parameter, and what typer is told of it."""
    for command, (module, function, _) in COMMANDS.items():
        parameters = inspect.signature(getattr(import_module(module), function), eval_str=True).parameters
        for parameter in parameters.values():
            yield command, parameter, get_args(parameter.annotation)[1]


def names_of(parameter: inspect.Parameter, info: Any) -> list[str]:
    names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    is_named = any(name.startswith("--") for name in names)
    return names if is_named else [f"--{parameter.name.replace('_', '-')}", *names]


def test_an_option_is_the_same_everywhere() -> None:
    """One short form, one metavar and one type of value for each name, and one name for each short form."""
    seen: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    shorts: dict[str, set[str]] = {"-q": {"--quiet"}, "-v": {"--verbose"}, "-h": {"--help"}}
    for _, parameter, info in options():
        if isinstance(info, typer.models.OptionInfo):
            names = names_of(parameter, info)
            short = [name for name in names if not name.startswith("--")]
            longs = [name for name in names if name.startswith("--")]
            for name in longs:
                kind = "" if name in SEVERAL_KINDS else str(get_args(parameter.annotation)[0])
                seen[name].add((tuple(short), info.metavar, kind))
            for name in short:
                shorts.setdefault(name, set()).add(longs[0])
    assert {name: kinds for name, kinds in seen.items() if len(kinds) > 1} == {}
    assert {short: names for short, names in shorts.items() if len(names) > 1} == {}


def test_no_help_text_is_taken_for_markup() -> None:
    """`[@revision]` would vanish from what typer prints."""
    lost = [
        f"{command} {parameter.name}"
        for command, parameter, info in options()
        if Text.from_markup(info.help or "").plain != (info.help or "")
    ]
    assert lost == []


@pytest.mark.parametrize("words", [("-h",), ("run", "-h"), ("bench", "compare", "-h")])
def test_h_is_help(words: tuple[str, ...]) -> None:
    assert run(*words).stdout == run(*words[:-1], "--help").stdout != ""


def test_options_of_every_day_are_on_the_first_screen_of_run() -> None:
    """Of 80 columns; the rest stands in groups behind them, a line or two each."""
    text = run("run", "-h", COLUMNS="80").stdout
    titles = re.findall(r"─ ([A-Z].*?) ─", text)
    more = ["More on the answer", "More on what computes", "With --runtime torch"]
    assert titles == ["Arguments", "Options", *more]
    first = "\n".join(text.splitlines()[:35])
    for name in (
        "max-tokens",
        "temperature",
        "system",
        "json-schema",
        "runtime",
        "vision",
        "language",
        "help",
    ):
        assert f"--{name} " in first
    assert text.count("\n") <= 72
    assert "--top-p" in text.split(more[0])[1].split(more[1])[0]


def test_an_older_name_of_an_option_is_read_and_shown_nowhere() -> None:
    for line, said in (
        ("bench nano --runtimes nonsense", "no runtime 'nonsense'"),
        ("bench nano --runtimes=nonsense", "no runtime 'nonsense'"),
        ("bench -- --runtimes", "--runtimes"),  # what stands behind two dashes is no option
        ("run nano what --device many", "--gpu"),
        ("train --out", "--output"),
    ):
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code != 0
        assert said in f"{result.exception} {result.output}"
    for command, names in OLD_OPTIONS.items():
        text = CliRunner().invoke(app, [command, "--help"]).output
        assert not [old for old in names if re.search(rf"{old}\b", text)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("exprt", "nano"), "Did you mean export?"),
        (("hardware_check",), "Did you mean hardware-check?"),
        (("run", "nano", "what", "--vison", "fp16"), "Did you mean --vision?"),
    ],
)
def test_what_is_nearly_right_is_told(words: tuple[str, ...], named: str) -> None:
    assert_one_line(*words, named=(named, "--help"))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ru", ["run"]),
        ("bench", ["bench", "bench compare"]),
        ("run --top-", ["--top-p", "--top-k"]),
        ("serve --api", ["--api-key-file"]),
    ],
)
def test_a_shell_completes_commands_and_options(line: str, offered: list[str]) -> None:
    words = f"tinyllava-edge {line}"
    asked = {"_TINYLLAVA_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    result = run(**asked, COMP_CWORD=str(words.count(" ")))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split("\n")[:-1] == offered


def test_completion_is_installed_for_the_shell_in_use(tmp_path: Path) -> None:
    """In a home of its own; bash is found by the tree of processes."""
    line = '"$0" -m tinyllava_edge --install-completion; echo ended $?'
    result = subprocess.run(
        ["bash", "-c", line, sys.executable],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert result.stdout.endswith("ended 0\n"), result
    [script] = (tmp_path / ".bash_completions").iterdir()
    assert "_TINYLLAVA_EDGE_COMPLETE=complete_bash" in script.read_text(encoding="utf-8")
    assert str(script) in (tmp_path / ".bashrc").read_text(encoding="utf-8")


def test_quiet_says_nothing_but_errors_before_and_behind_the_command(tmp_path: Path) -> None:
    for words in (("-q", "run", "nano", "hello"), ("run", "nano", "hello", "--quiet")):
        result = run(*words)
        assert (result.returncode, result.stderr) == (0, "")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    result = run("ask", "nano", "what is this", bad, "-q")
    assert result.returncode == 1
    assert result.stderr.startswith(f"failed: {bad}")
    assert result.stderr.count("\n") == 1
    assert_one_line("-q", "-v", "inspect", "nano", named=("contradict",))


def test_verbose_says_what_is_done_and_when() -> None:
    said = run("run", "nano", "hello", "-v").stderr
    assert re.search(r"^ +\d+\.\d\d s: .*opening \S+nano/bundle", said, re.MULTILINE)
    assert re.search(r"^ +\d+\.\d\d s: language: llamacpp", said, re.MULTILINE)


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a command does between two steps; `-q` leaves them out."""
    monkeypatch.setattr(console, "_FIRST_LINE_S", 0.05)
    for quiet in (False, True):
        monkeypatch.setattr(Talk, "quiet", quiet)
        with console.progress() as bar:
            task = bar.add_task("export", total=8)
            bar.add_task("", total=None)  # whose name comes later
            bar.advance(task)
            time.sleep(0.12)
        said = capsys.readouterr().err
        assert said == ("" if quiet else "export: 1 of 8, 0 s\n")


@pytest.mark.parametrize("words", ["run -h", "inspect nano", "nonsense"])
def test_no_color_leaves_no_escape_sequence_on_a_terminal(words: str) -> None:
    def printed(**environment: str) -> bytes:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "tinyllava_edge", *words.split()]
        variables = {**os.environ, "TERM": "xterm-256color", **environment}
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=ROOT, env=variables):
            os.close(theirs)
            found = b""
            while piece := _read(ours):
                found += piece
        os.close(ours)
        return found

    plain = printed(NO_COLOR="1")
    assert len(plain) > 50
    assert b"\x1b" not in plain
    if words == "run -h":
        assert b"\x1b[" in printed(NO_COLOR="")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux' way to say that it was closed
        return b""


@pytest.mark.parametrize("module", ["tinyllava_edge.process", "tinyllava_edge.cli", "numpy", "rich.console"])
def test_ctrl_c_during_an_import_is_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    raised = tmp_path / "raised"
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    result = run("inspect", "nano", PYTHONPATH=path, STRUCK=module, RAISED=str(raised))
    assert (result.returncode, result.stderr) == (INTERRUPTED, STOPPED)  # it may have printed before
    assert not raised.exists(), (
        "nothing is raised in the middle of an import, where a native module may crash"
    )


def test_a_stop_is_found_behind_what_a_library_made_of_it() -> None:
    stop = KeyboardInterrupt()
    made, shown = ImportError("a"), ValueError("b")
    made.__cause__, shown.__context__ = stop, made
    assert stop_behind(shown) is stop
    assert stop_behind(ValueError("c")) is None
