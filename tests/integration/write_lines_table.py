"""`python -m tests.integration.write_lines_table`: stages of each checkpoint line against upstream."""

import sys
from pathlib import Path

import torch
import transformers

from tests import nanovlm

from .checkpoint_lines import NAMES, Errors, Fixture, NanoVlm

PAGE = Path(__file__).parents[2] / "benchmarks" / "results" / "checkpoint_lines.md"
_HEAD = """# Checkpoint lines, stage by stage

Each row is a tiny checkpoint that upstream's own model classes wrote and computed with, at the commit named
([how](../../tests/fixtures/lines/README.md)). Prompts, ids and greedy answers are counted where they differ;
pixels, tower, connector and logits are the largest difference of any value, float32 here and there.

    python -m tests.integration.write_lines_table

{versions}

| checkpoint | upstream | layout | prompt | ids | pixels | tower | connector | logits | greedy |
|---|---|---|---|---|---|---|---|---|---|
"""


def row(fixture: Fixture | NanoVlm, errors: Errors) -> str:
    """One line of the table."""
    cases = fixture.cases
    repository, _, commit = fixture.upstream.partition("@")
    counted = (f"{n} of {cases} wrong" for n in (errors.wrong_prompts, errors.wrong_ids))
    values = (f"{value:.1e}" if value else "0" for value in (errors.pixels, errors.tower))
    more = (f"{value:.1e}" if value else "0" for value in (errors.connector, errors.logits))
    cells = (
        *(f"`{fixture.name}`", f"{repository} `{commit[:7]}`", fixture.checkpoint.layout),
        *(*counted, *values, *more, f"{errors.wrong_greedy} of {cases} wrong"),
    )
    return f"| {' | '.join(cells)} |\n"


def write_page(path: Path = PAGE) -> None:
    """Measure every fixture and write the page."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}."
    text = _HEAD.format(versions=versions)
    for fixture in (*map(Fixture, NAMES), *map(NanoVlm, nanovlm.GENERATIONS)):
        sys.stderr.write(f"{fixture.name}\n")
        text += row(fixture, fixture.measure())
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_page()
