"""README's figures are those of the reports in benchmarks/results. No model."""

import json
import shutil
from pathlib import Path

from tinyllava_edge.benchmarks.bench.compare import read_report
from tools.readme import BEGIN, END, ROOT, draw_choice, find_reports, measured_block, write_readme

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


def test_a_rival_is_beside_our_fastest_variant_that_is_no_farther_from_torch(tmp_path: Path) -> None:
    """Made-up rivals in nano's own report, with its torch row's times."""
    record = read_report(ROOT / "benchmarks" / "results" / "nano")
    torch = record["cells"][0]
    ours = {"fp32 + f32": 1e-9, "fp32 + q8_0": 1e-4, "fp32 + q4_k_m": 1e-2}
    ratio = {"low": 0.4, "high": 0.6}
    record["rivals"] = {
        "reference": "torch fp32",
        "accuracy": {name: {"mean_kld": kl, "top1_agreement": 1, "tokens": 8} for name, kl in ours.items()},
        "rows": [
            {**torch, "name": name, "accuracy": accuracy, "warm": {**torch["warm"], **faster}}
            for name, accuracy, faster in (
                ("theirs f16", {"mean_kld": 1e-3}, {}),
                ("theirs q8_0", {"mean_kld": 2e-4}, {"total_ms": 9.0}),
                ("exact", {"mean_kld": 1e-12}, {}),
                ("unknown q4_k_m", None, {}),
                ("unknown", None, {}),
            )
        ],
        "absent": [{"name": "gone", "why": "no environment"}],
        "ratios": [
            {**ratio, "rival": rival, "cell": cell, "metric": metric, "ratio": value}
            for rival in ("theirs q8_0", "exact", "unknown q4_k_m")
            for cell, value in (("fp32 + f32", 0.5), ("fp32 + q8_0", 0.45), ("fp32 + q4_k_m", 0.41))
            for metric in ("total_ms", "first_token_ms")
        ],
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(json.dumps(record))
    block = measured_block([tmp_path / "a" / "report.json"])
    lines = {line.split("*")[1]: line for line in block.splitlines() if "| a: *" in line}
    assert list(lines) == ["theirs q8_0", "exact", "unknown q4_k_m"]  # the fastest row of each program
    assert "| 2.0e-04 | - | " in lines["theirs q8_0"]
    assert lines["theirs q8_0"].endswith("| 9.0 | 0.45 [0.40, 0.60] (fp32 + q8_0) |")
    assert lines["exact"].endswith("| 0.50 [0.40, 0.60] (fp32 + f32) |")  # none is as near: the nearest
    assert lines["unknown q4_k_m"].endswith("| 0.41 [0.40, 0.60] (fp32 + q4_k_m) |")
    assert " Not measured, for the reasons there: gone." in block
    record["rivals"]["reference"] = "fp32 + f32"  # a distance from ours is none from torch
    (tmp_path / "a" / "report.json").write_text(json.dumps(record))
    block = measured_block([tmp_path / "a" / "report.json"])
    assert "2.0e-04" not in "".join(line for line in block.splitlines() if "*theirs" in line)
    record["rivals"]["reference"] = "torch fp32"
    record["control_passed"]["total_ms"] = False
    (tmp_path / "a" / "report.json").write_text(json.dumps(record))
    block = measured_block([tmp_path / "a" / "report.json"])
    assert "no claim (fp32 + q8_0)" in block
    assert "0.45" not in block


def test_runs_are_those_that_were_made(tmp_path: Path) -> None:
    record = read_report(ROOT / "benchmarks" / "results" / "nano")
    made = min(cell["warm"]["runs"] for cell in record["cells"])
    (tmp_path / "a").mkdir()
    bounded = {"why": "a bound"}
    for wanted, partial, said in (
        (made, None, f"{made} runs"),
        (99, bounded, f"{made} of 99 runs (a bound)"),
    ):
        changed = {**record, "amount": {**record["amount"], "runs": wanted}, "partial": partial}
        (tmp_path / "a" / "report.json").write_text(json.dumps(changed))
        assert f"- a: 64 tokens, {said} in 3 sessions on" in measured_block([tmp_path / "a" / "report.json"])


def test_the_picture_is_drawn_where_there_is_none(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "benchmarks" / "results" / "nano", tmp_path / "nano")
    picture = tmp_path / "nano" / "choice.png"
    picture.write_bytes(b"kept")
    draw_choice(tmp_path / "nano" / "report.json")
    assert picture.read_bytes() == b"kept"
    picture.unlink()
    draw_choice(tmp_path / "nano" / "report.json")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_results_the_block_says_how_to_measure() -> None:
    assert "make bench" in measured_block([])
