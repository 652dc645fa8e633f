"""SECURITY.md names limits that are the code's. No model."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from tinyllava_edge.picture_formats import FORMATS

PAGE = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
LIMITS = re.findall(r"^\| .+ \| ([\d ]+) \| `([\w.]+)\.(\w+)` \|$", PAGE, re.MULTILINE)


def test_every_row_of_the_table_names_a_constant() -> None:
    rows = PAGE.split("|---|---:|---|\n")[1].split("\n\n")[0].splitlines()
    assert len(LIMITS) == len(rows) > 15


@pytest.mark.parametrize(("limit", "module", "name"), LIMITS)
def test_a_limit_is_the_codes(limit: str, module: str, name: str) -> None:
    assert getattr(import_module(module), name) == int(limit.replace(" ", ""))


def test_the_formats_of_pictures_are_the_codes() -> None:
    assert f"read from files: {', '.join(FORMATS)}. " in PAGE


@pytest.mark.parametrize("command", ["fuzz", "faults"])
def test_its_commands_are_there(command: str) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    assert f"\n{command}: " in makefile
    assert f"`make {command}" in PAGE
