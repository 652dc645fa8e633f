"""A start's first token and decode beside a busy process, on nano and with a rival that computes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tinyllava_edge.benchmarks.bench.peers import rivals
from tinyllava_edge.benchmarks.bench.peers.rivals import Places, Rival
from tinyllava_edge.benchmarks.bench.plan import Plan
from tinyllava_edge.benchmarks.evals.cells import Wish
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BackendError
from tools.cold_and_busy import __main__ as command
from tools.cold_and_busy.busy import BESIDE, busy_sessions
from tools.cold_and_busy.cold import KNOWN
from tools.cold_and_busy.turns import Sample, in_turns, ratio_of

PEERS = Path(__file__).parents[1] / "benchmarks" / "bench" / "peers"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """One row of ours, and the scripted rival; a second one has no environment."""
    started = rivals._START.replace("[sys.argv.pop(1)]", f"[sys.argv.pop(1), {str(PEERS)!r}]")
    monkeypatch.setattr(rivals, "_START", started)
    scripted = Rival(module="scripted_rival", reads="checkpoint")
    monkeypatch.setattr(
        rivals, "RIVALS", {"scripted": scripted, "none": replace(scripted, environment="transformers")}
    )
    llava = tmp_path / "llava"
    llava.mkdir()
    (llava / "config.json").write_text(json.dumps({"architectures": ["LlavaForConditionalGeneration"]}))
    wish = Wish(runtimes=("onnxruntime+llamacpp",), language=("f16",))
    places = Places(home=tmp_path, checkpoint=llava)
    nano = Bundle.open(bundle_path("nano"))
    found, failed = command.plan_of(nano, wish, ("scripted", "none"), places, tmp_path)
    assert failed.keys() == {"none"}
    return found


def test_a_start_is_measured_from_outside_and_the_store_is_filled_before(plan: Plan, tmp_path: Path) -> None:
    failed: dict[str, str] = {}
    sessions = command.measure_cold(plan, 1, tmp_path, failed)
    assert failed == {}
    ours, control = (cell.name for cell in plan.cells)
    assert list(sessions) == [ours, ours + KNOWN, "scripted", control]
    for name in (ours, ours + KNOWN, control):
        for sample in sessions[name][0][0]:
            assert 100 < sample["first_token_ms"] < sample["ended_ms"]
    assert any((tmp_path / "tinyllava-edge" / "pictures").iterdir())
    for sample in sessions["scripted"][0][0]:
        assert sample["first_token_ms"] > sample["opened_ms"] > 1
    lines = list(command.cold_lines(sessions, plan))
    expected = ratio_of(sessions[ours], sessions["scripted"], "first_token_ms")
    assert expected is not None
    assert expected.ratio > 1  # Python alone against all that `run` imports
    assert f"| {ours} | {expected.ratio:.2f} [" in lines[-3]


def test_a_run_that_fails_is_left_out_with_its_words(plan: Plan, tmp_path: Path) -> None:
    options = replace(plan.cells[0].options, vision="fp17")
    cells = (replace(plan.cells[0], options=options), plan.cells[1])
    failed: dict[str, str] = {}
    sessions = command.measure_cold(replace(plan, cells=cells, rivals=()), 1, tmp_path, failed)
    assert all(not pairs for (pairs,) in sessions.values())
    assert "fp17" in failed[cells[0].name]


def test_decode_is_visited_calm_and_beside_a_process_that_works_only_then(plan: Plan) -> None:
    found = busy_sessions(plan, threads=2, sessions=1, rounds=1, failed={})
    names = [cell.name for cell in plan.rows]
    assert list(found) == [end for name in names for end in (name, name + BESIDE)]
    for name in names:
        (calm,), (beside,) = found[name][0], found[name + BESIDE][0]
        assert len(calm[0]["next_token_ms"]) == plan.request.num_tokens - 1
        idle, busy = ([sample["busy_cores"] for sample in pair] for pair in (calm, beside))
        assert max(idle) < min(busy)
        assert min(idle) < 0.01
    assert sum(name in line for line in command.busy_lines(found, plan) for name in names[:1]) >= 4


def test_rows_are_visited_there_and_back_and_one_that_fails_is_left_out() -> None:
    visited = []

    def row(name: str) -> Sample:
        visited.append(name)
        if name == "b" and visited.count("b") == 3:
            raise BackendError("no more")
        return {"ms": {"a": 2.0, "b": 4.0, "c": 8.0}[name]}

    failed: dict[str, str] = {}
    found = in_turns({name: lambda name=name: row(name) for name in "abc"}, 3, failed)  # type: ignore[misc]
    assert "".join(visited) == "abccba" + "abcca" + "acca"
    assert failed == {"b": "no more"}
    assert {name: len(pairs) for name, pairs in found.items()} == {"a": 3, "b": 1, "c": 3}
    ratio = ratio_of([found["a"]], [found["c"]], "ms")
    assert ratio is not None
    assert ratio.ratio == pytest.approx(0.25)
