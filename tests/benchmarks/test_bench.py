"""A comparison of a tiny bundle's variants, every cell in its own process. CPU; torch only where marked."""

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.bench import Plan, find_checkpoint, plan_cells, run_plan
from tinyllava_edge.benchmarks.measure import count_runs, measure_cells
from tinyllava_edge.benchmarks.parity import read_parity, write_parity
from tinyllava_edge.benchmarks.report import markdown_lines, write_report
from tinyllava_edge.benchmarks.worker import Cell, Request
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.embedded import bundle_path
from tinyllava_edge.errors import BackendError

from .conftest import Honest, climb_quickly

TOKENS = 4


def request(honest: Honest) -> Request:
    picture = honest.bundle / "reference" / "portrait.png"
    return Request(picture=str(picture), question="What is this?", num_tokens=TOKENS)


def scripted(honest: Honest, name: str, **changes: Any) -> Cell:
    values = {"vision": None, "language": None, "checkpoint": None, "threads": None, **changes}
    return Cell(name=name, bundle=str(honest.bundle), **{"runtime": "scripted", **values})


@pytest.fixture(scope="module")
def record(honest: Honest) -> dict[str, Any]:
    bundle = Bundle.open(honest.bundle)
    cells = plan_cells(
        bundle,
        runtime="onnxruntime+llamacpp",
        vision=bundle.variant("vision", "fp32"),
        language=(bundle.variant("language", "f32"), bundle.variant("language", "q8_0")),
        checkpoint=None,
        threads=1,
    )
    parity = climb_quickly(bundle, honest.reference).to_json()
    plan = Plan(cells=cells, request=request(honest), num_blocks=2)
    return run_plan(bundle, plan, parity, lambda name: None)


def test_cells_run_in_order_and_back_and_every_answer_has_the_same_length(honest: Honest) -> None:
    order: list[str] = []
    cells = [scripted(honest, "a"), scripted(honest, "b")]
    results = measure_cells(cells, request(honest), 2, order.append)
    assert order[-8:] == ["a", "b", "b", "a"] * 2
    assert len(order) == count_runs(2, 2)
    for result in results:
        assert len(result.samples) == 4
        assert {sample["generated_tokens"] for sample in result.samples} == {TOKENS}
        assert {sample["reused_tokens"] for sample in result.samples} == {0}
        assert all(sample["vision_ms"] > 0 for sample in result.samples)


def test_a_cell_that_cannot_be_opened_is_named(honest: Honest) -> None:
    wrong = scripted(honest, "q3", runtime="onnxruntime+llamacpp", language="q3_k_m")
    with pytest.raises(BackendError, match=r"q3: .*no language variant 'q3_k_m'"):
        measure_cells([wrong], request(honest), 1)


def test_only_torch_is_told_of_the_checkpoint(honest: Honest) -> None:
    bundle = Bundle.open(honest.bundle)
    torch_cell, other, control = plan_cells(
        bundle,
        runtime="onnxruntime+llamacpp",
        vision=bundle.variant("vision", "fp32"),
        language=(bundle.variant("language", "f32"),),
        checkpoint=honest.checkpoint,
        sources=Path("files"),
        allow_pickle=True,
        threads=1,
    )
    for cell in (torch_cell, control):
        told = (str(honest.checkpoint), "files", True)
        assert (cell.checkpoint, cell.sources, cell.allow_pickle) == told
    assert (other.checkpoint, other.sources, other.allow_pickle) == (None, None, False)


def test_figures_are_derived_from_the_raw_samples_that_are_kept(record: dict[str, Any]) -> None:
    for cell in record["cells"]:
        samples = [sample for block in cell["blocks"] for sample in block]
        assert cell["runs"] == len(samples) == 4
        assert cell["total_ms"] == statistics.median(sample["total_ms"] for sample in samples)
        assert cell["stages_ms"]["vision"] == statistics.median(sample["vision_ms"] for sample in samples)
        assert cell["total_ms_p90"] is None
        assert cell["same_answer_every_run"]


def test_speed_stands_beside_size_and_parity(record: dict[str, Any]) -> None:
    f32, q8_0, control = record["cells"]
    assert control["name"] == "fp32 + f32 again"
    assert q8_0["size_bytes"] < f32["size_bytes"]
    assert f32["parity"]["mean_kld"] < q8_0["parity"]["mean_kld"]
    assert {ratio["cell"] for ratio in record["ratios"]} == {q8_0["name"], control["name"]}


def test_the_report_is_written_and_a_failed_control_forbids_every_claim(
    record: dict[str, Any], tmp_path: Path
) -> None:
    write_report(tmp_path, record)
    assert json.loads((tmp_path / "report.json").read_text())["cells"] == json.loads(
        json.dumps(record["cells"])
    )
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    failed = copy.deepcopy(record)
    failed["control_passed"] = False
    text = "\n".join(markdown_lines(failed))
    assert "no claim" in text
    assert "faster" not in text.split("\n- *speed*")[0]
    assert "NO CLAIM IS VALID" in text


def test_parity_of_another_manifest_is_not_used(honest: Honest, tmp_path: Path) -> None:
    bundle = Bundle.open(honest.bundle)
    path = write_parity(bundle, "some-runtime", {"passed": True, "stages": []})
    try:
        assert read_parity(bundle, "some-runtime") is not None
        other = Bundle(bundle.root, bundle.manifest, "0" * 64)
        assert read_parity(other, "some-runtime") is None
    finally:
        path.unlink()


def test_parity_of_the_shipped_bundle_is_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle.open(bundle_path("nano"))
    path = write_parity(bundle, "some-runtime", {"passed": True})
    assert path == tmp_path / "tinyllava-edge" / "parity" / bundle.manifest_sha256 / "some-runtime.json"
    assert read_parity(bundle, "some-runtime") == {"manifest_sha256": bundle.manifest_sha256, "passed": True}


@pytest.mark.slow
def test_torch_is_measured_on_the_checkpoint_that_the_bundle_came_from(honest: Honest) -> None:
    bundle = Bundle.open(honest.bundle)
    checkpoint = find_checkpoint(bundle)
    assert checkpoint == honest.checkpoint
    cells = plan_cells(
        bundle,
        runtime="onnxruntime+llamacpp",
        vision=bundle.variant("vision", "fp32"),
        language=(bundle.variant("language", "f32"),),
        checkpoint=checkpoint,
        threads=1,
    )
    plan = Plan(cells=cells, request=request(honest), num_blocks=1)
    found = run_plan(bundle, plan, None, lambda name: None)
    torch_cell, f32, _ = found["cells"]
    assert torch_cell["name"] == "torch fp32"
    answers = [cell["blocks"][0][0]["answer_sha256"] for cell in (torch_cell, f32)]
    assert answers[0] == answers[1]
