"""README's figures are those of the reports in benchmarks/results. No model."""

import shutil
from pathlib import Path

from tinyllava_edge.benchmarks.bench.compare import read_report
from tools.readme import BEGIN, END, ROOT, find_reports, measured_block, write_readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_says_what_the_reports_say(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results", dirs_exist_ok=True)
    empty = README.split(BEGIN)[0] + BEGIN + END + README.split(END)[1]
    (tmp_path / "README.md").write_text(empty, encoding="utf-8")
    write_readme(tmp_path)
    found = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert found == README, "run python -m tools.readme"


def test_every_committed_result_is_whole_and_in_the_block() -> None:
    block = README.split(BEGIN)[1].split(END)[0]
    for path in find_reports():
        record = read_report(path)  # of this schema version
        assert record["control_passed"]["total_ms"], f"{path}: measured while its control failed"
        if not path.parent.name.endswith("-random"):  # weights that say nothing about accuracy
            assert all(cell["parity_passed"] for cell in record["cells"] if cell["language"]), path
        assert all(session["requests"] for cell in record["cells"] for session in cell["sessions"])
        for name in ("report.md", "report.png"):
            assert (path.parent / name).exists()
        assert f"benchmarks/results/{path.parent.name}/report.json" in block


def test_without_results_the_block_says_how_to_measure() -> None:
    assert "make bench" in measured_block([])
