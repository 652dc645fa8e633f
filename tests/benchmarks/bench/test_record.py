"""A comparison of a tiny bundle's variants, every cell in its own process. CPU; torch only where marked."""

import copy
import json
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.benchmarks.bench.boards import install_tegrastats, recorded_lines
from tests.benchmarks.conftest import Honest, climb_quickly
from tinyllava_edge.benchmarks.bench.measure import is_steady, measure_cells
from tinyllava_edge.benchmarks.bench.pace import Amount
from tinyllava_edge.benchmarks.bench.plan import Plan, plan_cells
from tinyllava_edge.benchmarks.bench.quality import Quality
from tinyllava_edge.benchmarks.bench.record import run_plan
from tinyllava_edge.benchmarks.bench.report import markdown_lines, write_report
from tinyllava_edge.benchmarks.bench.worker import OpenCell, Recorder, Request, replay
from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.benchmarks.evals.cells import Wish
from tinyllava_edge.benchmarks.evals.questions import read_questions
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.runtimes.base import BackendOptions

TOKENS = 4
BLOCK = Amount(sessions=1, blocks=1, warm_up_s=0.0)
RUNTIME = "onnxruntime+llamacpp"


def request(honest: Honest) -> Request:
    picture = honest.bundle / "reference" / "portrait.png"
    return Request(
        picture=str(picture), question="What is this?", second_question="Is it red?", num_tokens=TOKENS
    )


def scripted(honest: Honest, name: str, runtime: str = "scripted", **options: Any) -> Cell:
    return Cell(name, "tiny", runtime, honest.bundle, BackendOptions(**options))


def questions(folder: Path) -> Quality:
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "red.png")
    records = [
        {"image": "red.png", "question": f"Question {n}?", "answer": "x", "type": "t"} for n in range(3)
    ]
    (folder / "q.json").write_text(json.dumps(records))
    return Quality(folder / "q.json", folder, read_questions(folder / "q.json", folder))


@pytest.fixture(scope="module")
def record(honest: Honest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    bundle = Bundle.open(Path(shutil.copytree(honest.bundle, folder / "bundle")))
    ladder = climb_quickly(bundle, honest.reference).to_json()
    write_parity(bundle, RUNTIME, {**ladder, "variants": {"vision": ["fp32", "fp16"]}})
    bundles = {"tiny": bundle}
    wish = Wish(runtimes=(RUNTIME,), language=("f32", "q8_0"), options=BackendOptions(threads=1))
    plan = Plan(
        bundles=bundles,
        cells=plan_cells(bundles, wish),
        request=request(honest),
        amount=Amount(sessions=2, blocks=1, warm_up_s=0.0),
    )
    made, stop = run_plan(plan, questions(folder))
    assert (made["partial"], stop) == (None, None)
    return made


def test_cells_run_in_order_and_back_and_every_answer_has_the_same_length(honest: Honest) -> None:
    events: list[dict[str, Any]] = []
    cells = [scripted(honest, "a"), scripted(honest, "b"), scripted(honest, "a again")]
    files: dict[str, list[Path]] = {cell.name: [] for cell in cells}
    amount = replace(BLOCK, sessions=2)
    found = measure_cells(cells, request(honest), amount, files, events.append)
    assert (found.ended, found.failed, found.stopped) == ("", {}, None)
    sessions = found.sessions
    order = [event["cell"] for event in events if event["event"] == "visit"]
    requests, raw = ["a", "b", "a again"], ["a", "b"]
    assert order == [*requests, *raw, *raw[::-1], *requests[::-1]] * 2
    assert len(order) == amount.visits(len(cells))
    for session in sessions:
        assert [len(cell.raw) for cell in session.cells] == [1, 1, 0]
        for cell in session.cells:
            ((one, other),) = cell.requests
            assert one["warm"]["generated_tokens"] == other["cached"]["generated_tokens"] == TOKENS
            assert len(cell.warm_up) >= 6


def test_only_the_second_question_finds_something_computed(honest: Honest) -> None:
    opened = OpenCell(scripted(honest, "a"), request(honest))
    for _ in range(2):  # and no request finds what the one before it left
        found = opened.requests()
        assert found["warm"]["reused_tokens"] == 0
        assert found["warm"]["vision_ms"] > 0
        tokens = Bundle.open(honest.bundle).manifest.vision.num_tokens
        assert tokens < found["cached"]["reused_tokens"] < found["cached"]["prompt_tokens"]
        opened.raw()
    opened.close()


def test_raw_calls_are_those_of_the_request_and_give_the_same_logits(honest: Honest) -> None:
    cell = scripted(honest, "a", runtime=RUNTIME, vision="fp32", language="f32", threads=1)
    opened = OpenCell(cell, request(honest))
    opened.requests()
    expected = opened._language.last_logits()
    calls = opened._record_calls()
    names = [call.func.__name__ for call in calls]
    # One picture between two stretches of text, then a token at a time; the last token is not evaluated.
    assert names[:6] == ["encode", "truncate", "evaluate", "evaluate", "evaluate", "last_logits"]
    assert names[6:] == ["evaluate", "last_logits"] * (TOKENS - 1)
    opened._model.forget()
    opened._model.ask("What is this?", [request(honest).picture], max_tokens=TOKENS)
    asked = opened._language.last_logits()
    spent = replay(calls)
    assert opened._language.last_logits() == pytest.approx(asked)
    assert opened._language.last_logits() != pytest.approx(expected)  # of the second question
    assert spent["total_ms"] == spent["vision_ms"] + spent["prefill_ms"] + spent["decode_ms"]
    assert min(spent.values()) > 0
    opened.close()


def test_a_recorder_is_seen_through() -> None:
    class Backend:
        name = "mine"

        def encode(self, pixels: int) -> int:
            return pixels + 1

    recorder: Any = Recorder(Backend())  # type: ignore[arg-type]
    assert (recorder.name, recorder.encode(1)) == ("mine", 2)
    assert [call.args for call in recorder.calls] == [(1,)]


@pytest.mark.parametrize(
    ("totals", "steady"),
    [
        ([10.0] * 5, False),
        ([10.0] * 6, True),
        ([20, 12, 11, 10, 10, 10], False),
        ([9, 10, 11, 10, 10, 12], True),
    ],
)
def test_warm_is_when_the_last_three_are_like_the_three_before(totals: list[float], steady: bool) -> None:
    assert is_steady(totals) is steady


def test_a_row_of_long_requests_is_warm_after_two(honest: Honest) -> None:
    amount = Amount(sessions=1, blocks=1, warm_up_s=60.0, most_warm_up_s=0.0, alone=False)
    cell = scripted(honest, "a", vision="fp32", language="f32")
    found = measure_cells([cell, replace(cell, name="a again")], request(honest), amount, {})
    assert [len(one.warm_up) for one in found.sessions[0].cells] == [2, 2]


def test_a_cell_that_cannot_be_opened_is_named(honest: Honest) -> None:
    wrong = scripted(honest, "q3", runtime=RUNTIME, vision="fp32", language="q3_k_m")
    found = measure_cells([wrong], request(honest), BLOCK, {"q3": []})
    assert re.match(r"q3: .*no language variant 'q3_k_m'", found.ended)
    assert str(found.error) == found.ended


def test_figures_are_derived_from_the_raw_samples_that_are_kept(record: dict[str, Any]) -> None:
    for cell in record["cells"]:
        for kind in ("warm", "cached"):
            samples = [s[kind] for session in cell["sessions"] for pair in session["requests"] for s in pair]
            figures = cell[kind]
            assert figures["runs"] == len(samples) == record["amount"]["runs"] == 4
            assert figures["total_ms"] == statistics.median(s["total_ms"] for s in samples)
            assert figures["stages_ms"]["vision"] == statistics.median(s["vision_ms"] for s in samples)
            after_first = [(s["total_ms"] - s["first_token_ms"]) / (TOKENS - 1) for s in samples]
            assert figures["token_ms"] == pytest.approx(statistics.median(after_first))
            assert figures["total_ms_p90"] is None
        assert cell["same_answer_every_run"]
        assert cell["peak_memory_bytes"] > 10_000_000
        assert cell["load_warm_s"] > 0
        firsts = [session["warm_up"][0]["warm"]["total_ms"] for session in cell["sessions"]]
        assert cell["cold"]["total_ms"] == statistics.median(firsts)
        assert cell["cold"]["runs"] == record["amount"]["sessions"] == 2
    assert record["load"]["blocks"][1][0]["disturbed"] in (True, False)


def test_speed_stands_beside_size_parity_and_accuracy(record: dict[str, Any]) -> None:
    f32, q8_0, control = record["cells"]
    assert control["name"] == record["control"] == "fp32 + f32 again"
    assert q8_0["size_bytes"] < f32["size_bytes"]
    assert f32["parity"]["mean_kld"] < q8_0["parity"]["mean_kld"]
    assert {ratio["cell"] for ratio in record["ratios"]} == {q8_0["name"], control["name"]}
    assert record["questions"]["questions"] == 3
    assert f32["quality"]["against_first"]["agreement"] == 1
    assert (f32["quality"]["accuracy"], f32["quality"]["blind_accuracy"]) == (0, 0)
    assert control["quality"] is None
    assert f32["stitching"]["low"] <= f32["stitching"]["ratio"] <= f32["stitching"]["high"]
    assert control["stitching"] is None


def test_parity_of_another_vision_variant_is_not_taken(record: dict[str, Any], honest: Honest) -> None:
    from tinyllava_edge.benchmarks.bench.figures import _cell_parity

    stages = [
        {"stage": "teacher_forced", "variant": label, "checks": [{"metric": "mean_kld", "value": value}]}
        for label, value in (("f16", 1.0), ("q8_0", 2.0), ("f16, vision int8", 3.0))
    ]
    parity = {"variants": {"vision": ["fp32", "int8"]}, "stages": stages}

    def found(vision: str, language: str) -> Any:
        return _cell_parity(scripted(honest, "", vision=vision, language=language), parity)

    assert found("fp32", "q8_0") == {"mean_kld": 2.0}
    assert found("int8", "f16") == {"mean_kld": 3.0}
    assert found("int8", "q8_0") is None


def test_the_report_is_written_and_a_failed_control_forbids_every_claim(
    record: dict[str, Any], tmp_path: Path
) -> None:
    write_report(tmp_path, record)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(record))
    stages = (tmp_path / "report.md").read_text()
    assert [stages.count(f"| {state} |") for state in ("cold", "warm", "cached")] == [2, 2, 2]
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size[0] > 1000
    failed = copy.deepcopy(record)
    failed["control_passed"]["total_ms"] = False
    text = "\n".join(markdown_lines(failed))
    assert "no claim" in text
    assert "faster" not in text.split("\n- *speed*")[0]
    assert "NO CLAIM IS VALID about end to end" in text
    lines = (tmp_path / "report.json").read_text().splitlines()
    assert sum("next_token_ms" in line and line.count(",") >= TOKENS - 2 for line in lines) >= 3 * 4 * 2


def test_the_notes_say_what_makes_figures_doubtful(record: dict[str, Any]) -> None:
    doubtful = copy.deepcopy(record)
    for cell in doubtful["cells"]:
        cell["unstable"] = False
    first = doubtful["cells"][0]
    first["unstable"], first["same_answer_every_run"], first["load_cold_s"] = True, False, None
    doubtful["load"]["before"].update(disturbed=True, others=0.5, stolen=0.1)
    doubtful["load"]["blocks"][0][0]["disturbed"] = True
    doubtful["load"]["blocks"][1][0]["disturbed"] = False
    doubtful["bundles"][0]["parameters"]["language_model"] = 135_000_000
    first["stitching"] = {"ratio": 1.2, "low": 1.1, "high": 1.3}
    text = "\n".join(markdown_lines(doubtful))
    for said in (
        "Unstable (runs deviate by more than a tenth from their median): fp32 + f32.",
        "The answer was not the same in every run: fp32 + f32.",
        "Cold loads unknown",
        "1 of 2 blocks disturbed by others; before: other processes use 50%",
        "OVER IT: fp32 + f32",
    ):
        assert said in text


@pytest.mark.slow
def test_torch_is_measured_on_the_checkpoint_that_the_bundle_came_from(honest: Honest) -> None:
    bundles = {"tiny": Bundle.open(honest.bundle)}
    options = BackendOptions(threads=1)
    cells = plan_cells(bundles, Wish(language=("f32",), checkpoints=(honest.checkpoint,), options=options))
    found, _ = run_plan(Plan(bundles=bundles, cells=cells, request=request(honest), amount=BLOCK))
    torch_cell, f32, _ = found["cells"]
    assert torch_cell["name"] == "torch fp32"
    (one, other) = (cell["sessions"][0]["requests"][0][0] for cell in (torch_cell, f32))
    assert one["warm"]["answer_sha256"] == other["warm"]["answer_sha256"]
    assert one["cached"]["answer_sha256"] == other["cached"]["answer_sha256"]


def test_a_boards_report_has_joules_and_what_the_gpu_holds(
    honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tegrastats that prints recorded lines, and this machine's own MemAvailable as a Jetson's."""
    install_tegrastats(tmp_path / "bin", monkeypatch, recorded_lines()[3:5])
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.device_memory.read_jetson", lambda root: "a Jetson")
    bundles = {"tiny": Bundle.open(honest.bundle)}
    wish = Wish(runtimes=("scripted",), language=("f32",), options=BackendOptions(threads=1))
    cells = plan_cells(bundles, wish)
    found, _ = run_plan(Plan(bundles=bundles, cells=cells, request=request(honest), amount=BLOCK))
    assert found["device_memory"] == "shared"
    assert found["machine"]["power"]["source"] == found["power"]["source"] == "tegrastats"
    cell = found["cells"][0]
    assert cell["device_peak_bytes"] is None or cell["device_peak_bytes"] > 0
    answer = cell["sessions"][0]["requests"][0][0]["warm"]
    # Between the two lines' 6.966 W and 21.428 W, for as long as the answer took (its text too).
    assert 6.9 * answer["total_ms"] / 1000 < answer["joules"]["VDD_IN"]
    assert set(answer["joules"]) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert "window_s" not in answer
    assert 6.966 < found["power"]["idle_whole_w"] < 21.428
    text = "\n".join(markdown_lines(found))
    for said in (
        *("host peak MB (VmHWM)", "J/answer", "of VDD_IN: all that this board's input feeds"),
        "*host + GPU MB (drop of MemAvailable)*",
    ):
        assert said in text
    write_report(tmp_path, found)


def test_a_measured_process_imports_nothing_of_what_judges_it() -> None:
    """Its peak memory and start are figures of a report."""
    code = "import sys, tinyllava_edge.benchmarks.bench.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "tinyllava_edge.benchmarks.evals.cell " in loaded
    assert "tinyllava_edge.benchmarks.verify" not in loaded
