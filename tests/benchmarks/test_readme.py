"""README's figures are those of the reports in benchmarks/results. No model."""

import shutil
from pathlib import Path

from tinyllava_edge.benchmarks.readme import BEGIN, END, ROOT, write_readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_says_what_the_reports_say(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    empty = README.split(BEGIN)[0] + BEGIN + END + README.split(END)[1]
    (tmp_path / "README.md").write_text(empty, encoding="utf-8")
    write_readme(tmp_path)
    found = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert found == README, "run python -m tinyllava_edge.benchmarks.readme"


def test_the_block_has_times_parity_sizes_and_a_verdict() -> None:
    block = README.split(BEGIN)[1].split(END)[0]
    assert "| cell | MB | KL | top-1 | end to end |" in block
    assert "`verify`" in block
    assert "A/A control" in block
