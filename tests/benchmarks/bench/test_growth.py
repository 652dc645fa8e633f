"""How time grows: fits on times whose exponent is known, and points of a scripted and a real model."""

from typing import Any

import numpy as np
import pytest

from tests.benchmarks.bench.test_record import RUNTIME, request, scripted
from tests.benchmarks.conftest import Honest
from tinyllava_edge.benchmarks.bench import growth
from tinyllava_edge.benchmarks.bench.growth import (
    AXES,
    amounts_of,
    fitted_exponent,
    growth_record,
    measure_growth,
)
from tinyllava_edge.benchmarks.bench.live import Live
from tinyllava_edge.benchmarks.bench.pace import TimeUp
from tinyllava_edge.benchmarks.bench.plot_growth import draw_growth
from tinyllava_edge.bundle import Bundle


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_an_exponent_is_found_through_noise(exponent: float) -> None:
    rng = np.random.default_rng(3)
    by_x = {x: list(0.5 * x**exponent * np.exp(0.05 * rng.standard_normal(5))) for x in (16, 64, 256, 1024)}
    fit = fitted_exponent(by_x)
    assert fit is not None
    assert fit["exponent"] == pytest.approx(exponent, abs=0.05)
    assert fit["low"] < fit["exponent"] < fit["high"]
    assert fit["high"] - fit["low"] < 0.1


def test_two_amounts_have_no_exponent() -> None:
    assert fitted_exponent({1: [1.0], 2: [2.0]}) is None


def test_no_amount_is_beyond_the_context(honest: Honest) -> None:
    bundle = Bundle.open(honest.bundle)
    tokens = bundle.manifest.vision.num_tokens
    for context_length in (128, 512, 4096):
        amounts = amounts_of(bundle, context_length)
        assert set(amounts) == set(AXES)
        assert all(n <= context_length for n in (*amounts["visual_tokens"], *amounts["context"]))
        assert all(n * tokens <= context_length for n in amounts["pictures"])
        assert all(2 * n <= context_length for n in amounts["text"])
    assert amounts["context"] == [32, 64, 128, 256, 512, 1024, 2048]


@pytest.mark.parametrize("runtime", ["scripted", RUNTIME])
def test_every_axis_is_measured(honest: Honest, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    monkeypatch.setattr(growth, "ROUNDS", 2)
    monkeypatch.setattr(growth, "_MOST_POSITIONS", 128)
    points: list[dict[str, Any]] = []
    cell = scripted(honest, "a", runtime=runtime, vision="fp32", language="f32", threads=1)
    bundle = Bundle.open(honest.bundle)
    lines: list[str] = []
    measure_growth(cell, request(honest), bundle, lambda: None, Live(lines.append), points)
    assert lines == ["growth: round 1 of 2 done", "growth: round 2 of 2 done"]
    record = growth_record(cell.name, points)
    found = {(curve["axis"], curve["stage"]): curve for curve in record["curves"]}
    assert found.keys() == {
        ("visual_tokens", "prefill"),
        ("text", "prefill"),
        ("pictures", "vision"),
        ("pictures", "prefill"),
        ("context", "per token"),
    }
    texts = [point["x"] for point in found["text", "prefill"]["points"]]
    assert texts == sorted(texts)
    assert texts[-1] > texts[0] + 16  # words are at least a token each
    assert all(len(p["ms"]) == 2 and min(p["ms"]) > 0 for c in found.values() for p in c["points"])
    assert draw_growth({"growth": record}) is not None


def test_what_ends_it_leaves_the_points_that_were_measured(honest: Honest) -> None:
    points: list[dict[str, Any]] = []
    bundle = Bundle.open(honest.bundle)

    def check() -> None:
        if len(points) == 3:
            raise TimeUp("the time bound")

    with pytest.raises(TimeUp):
        measure_growth(scripted(honest, "a"), request(honest), bundle, check, lambda event: None, points)
    assert len(points) == 3
    assert growth_record("a", points)["cell"] == "a"
