"""Lines that somebody else's machine is to run: each is read by what will run it, and not run."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import typer

from tinyllava_edge.cli import app

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def check_line(line: str) -> None:
    """Fail where a line names a command, option, module, target or test that is not there."""
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
    assert words, line
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), line
    elif words[0] == "tinyllava-edge":
        parse(words[1:])
    elif words[:3] == ["python", "-m", "tinyllava_edge"]:
        parse(words[3:])
    elif words[:3] == ["python", "-m", "pytest"]:
        assert [word for word in words[3:] if not (ROOT / word).exists()] == [], line
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), line


def parse(words: list[str]) -> None:
    """As the command reads its arguments, and up to where it would begin."""
    group = typer.main.get_command(app)
    context = group.make_context("tinyllava-edge", ["inspect", "nano"])
    name, command, rest = group.resolve_command(context, list(words))  # type: ignore[attr-defined]
    command.make_context(name, rest, parent=context)
