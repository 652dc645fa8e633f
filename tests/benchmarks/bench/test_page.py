"""The HTML page and the pictures of a report, from a committed record."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.bench.compare import read_report
from tinyllava_edge.benchmarks.bench.figures import drawn_rows
from tinyllava_edge.benchmarks.bench.notes import notes_of
from tinyllava_edge.benchmarks.bench.page import page_of
from tinyllava_edge.benchmarks.bench.palette import STAGE_COLOURS, row_style
from tinyllava_edge.benchmarks.bench.pictures import draw_all, svg_text
from tinyllava_edge.benchmarks.bench.plot_budgets import draw_budgets
from tinyllava_edge.benchmarks.bench.plot_choice import draw_choice
from tinyllava_edge.benchmarks.bench.plot_growth import draw_growth
from tinyllava_edge.benchmarks.bench.report import report_mark, write_report
from tinyllava_edge.benchmarks.bench.tables import tables_of

NANO = Path(__file__).parents[3] / "benchmarks" / "results" / "nano"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    made = read_report(NANO)
    made["roof"] = {
        "threads": 2,
        "gflops": {"fp32": 190.0, "bf16": 413.0},
        "by": {"fp32": "numpy", "bf16": "torch"},
        "read_gb_per_s": 34.9,
    }
    for cell in made["cells"]:
        stage = {"flops": 183e6, "bytes": 5e6, "type": "fp32", "ms": 0.96, "share": 0.4}
        token = {"flops": 4e6, "bytes": 4e6, "ms": 0.12, "share": 0.6}
        cell["floors"] = {"vision": stage, "prefill": stage, "token": token}
    points = [{"x": x, "ms": [x * 1.0, x * 1.1]} for x in (1, 2, 4)]
    fit = {"exponent": 1.0, "low": 0.9, "high": 1.1}
    curve = {"axis": "text", "stage": "prefill", "points": points, "exponent": fit}
    made["growth"] = {"cell": "fp32 + f32", "curves": [curve]}
    return made


class Page(HTMLParser):
    """Checks that elements are closed, and collects what they hold and refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name.split(":")[-1] in ("href", "src")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name.split(":")[-1] in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_is_whole_and_needs_nothing_else(record: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, record)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert text.count("<svg") == 4
    assert "@import" not in text
    warm = next(cell["warm"] for cell in record["cells"] if cell["name"] == "fp32 + f32")
    total = f"{warm['total_ms']:.1f} +- {warm['total_ms_deviation']:.1f}"
    for said in ("fp32 + q8_0", total, "1.00 [0.90, 1.10]", "0.96 (fp32)"):
        assert said in page.cells
    assert "<em>speed</em>" in text
    markdown = (tmp_path / "report.md").read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert pictures == ["report.png", "choice.png", "roofline.png", "growth.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in pictures)
    assert report_mark(tmp_path) == ""  # so --force may replace it


def test_names_are_text_and_no_elements(record: dict[str, Any]) -> None:
    hostile = copy.deepcopy(record)
    hostile["cells"][1]["name"] = "<script>alert(1)</script>"
    hostile["request"]["question"] = "<img src=x>"
    hostile["bundles"][0]["name"] = "<b>"
    hostile["growth"]["cell"] = "<script>alert(2)</script>"
    text = page_of(hostile, {"growth": svg_text("growth", draw_growth(hostile))})
    assert text.count("alert(2)") >= 2  # in the table's title, and in the picture's
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>" not in text


def test_pictures_without_figures_are_left_out(record: dict[str, Any]) -> None:
    bare = {**record, "growth": None, "roof": None, "rivals": None}
    assert [name for name, _ in draw_all(bare)] == ["report", "choice"]
    for cell in (cells := copy.deepcopy(record["cells"])):
        cell["quality"] = None
    unscored = {**bare, "cells": cells, "questions": None}
    figure = draw_choice(unscored)
    assert figure.axes[0].get_ylabel() == "top-1 agreement with torch float32"
    for cell in cells:
        cell["parity"] = None
    assert draw_choice(unscored) is None


def test_stages_and_rows_have_colours_of_their_own() -> None:
    styles = [row_style(index) for index in range(30)]
    assert not {style["color"] for style in styles} & set(STAGE_COLOURS.values())
    assert len({tuple(style.values()) for style in styles}) == 30


def test_rivals_are_drawn_beside_ours(record: dict[str, Any]) -> None:
    """A rival that tells no stage before its first token has that time in one bar."""
    warm = {
        "stages_ms": {"tokenize": None, "preprocess": None, "vision": None, "prefill": 3.0},
        "first_token_ms": 10.0,
        "total_ms": 30.0,
        "token_ms": 1.0,
        "runs": 2,
    }
    rival = {
        "name": "mtmd q8_0",
        "warm": warm,
        "cached": None,
        "size_bytes": 10**7,
        "peak_memory_bytes": 10**8,
        "accuracy": {"top1_agreement": 0.9},
        "sessions": record["cells"][1]["sessions"],
    }
    rows = drawn_rows({**record, "rivals": {"rows": [rival]}})
    assert rows[-1]["warm"]["stages_ms"] == {"prefill": 3.0, "not told apart": 7.0, "decode": 20.0}
    drawn = dict(draw_all({**record, "rivals": {"rows": [rival]}}))
    ticks = [label.get_text() for label in drawn["report"].axes[0].get_yticklabels()]
    assert ticks[-1] == "mtmd q8_0"


def _with_budgets(record: dict[str, Any]) -> dict[str, Any]:
    """The rows as if each had fewer visual tokens than the one before, and cost something."""
    made = copy.deepcopy(record)
    made["questions"] = {
        "file": "q.json",
        "sha256": "0" * 64,
        "questions": 9,
        "pictures": 3,
        "max_tokens": 16,
    }
    cost = {"name": "first", "difference": -0.05, "difference_ci95": [-0.1, -0.01]}
    for index, cell in enumerate(made["cells"]):
        cell["tokens_per_picture"] = (36, 9, 4, 1)[index % 4]
        cell["quality"] = {"accuracy": 0.6, "blind_accuracy": 0.3, "ci95": [0.5, 0.7]}
        if index:
            cell["quality"]["against_most_tokens"] = cost
    return made


def test_rows_with_several_budgets_of_visual_tokens_have_a_table_and_a_plot(record: dict[str, Any]) -> None:
    made = _with_budgets(record)
    (table,) = [table for table in tables_of(made) if table.title == "By visual tokens"]
    assert [row["visual tokens"] for row in table.rows][:4] == ["36", "9", "4", "1"]
    assert table.rows[0]["difference from the most tokens"] == "-"
    assert table.rows[1]["difference from the most tokens"] == "-0.050 [-0.100, -0.010]"
    assert table.rows[1]["accuracy"] == "0.600 [0.500, 0.700]"
    figure = draw_budgets(made)
    text = svg_text("budgets", figure)
    assert {f">{tokens}</text>" in text for tokens in (36, 9, 4, 1)} == {True}
    assert any("difference from the most tokens" in line for line in notes_of(made))
    assert "budgets" in dict(draw_all(made))


def test_rows_with_one_number_of_visual_tokens_have_neither(record: dict[str, Any]) -> None:
    assert "By visual tokens" not in [table.title for table in tables_of(record)]
    assert draw_budgets(record) is None
