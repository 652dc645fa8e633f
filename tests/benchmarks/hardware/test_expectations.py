"""Registered figures: their arithmetic by hand, their page, and what a value is called. No device."""

import json
from pathlib import Path

import pytest

from tinyllava_edge.benchmarks.hardware.expectations import (
    Figure,
    connector_flops,
    expected_figures,
    kv_bytes,
    layer_parameters,
    prefill_flops,
    read_expectations,
    tower_flops,
)
from tinyllava_edge.benchmarks.hardware.expected_page import implied, page_lines
from tinyllava_edge.boards import BOARDS

ROOT = Path(__file__).parents[3]
DATA = read_expectations()
QWEN2, PHI2 = DATA["models"]["qwen2-0.5b-siglip"], DATA["models"]["phi2-siglip"]


def figures(board: str, model: str) -> dict[str, Figure]:
    return {figure.key: figure for figure in expected_figures(board, model)}


def test_the_page_is_the_data() -> None:
    page = (ROOT / "docs" / "expected_figures.md").read_text(encoding="utf-8")
    assert page == "\n".join(page_lines()) + "\n"


def test_flops_are_those_counted_by_hand() -> None:
    """26 layers of 4 d^2 and 2 d f weights over 729 tokens, twice; attention; 14 x 14 patches."""
    projections, feed_forward = 4 * 1152 * 1152, 2 * 1152 * 4304
    layer = 2 * 729 * (projections + feed_forward) + 2 * 2 * 729 * 729 * 1152
    assert tower_flops(DATA) == 26 * layer + 2 * 729 * 588 * 1152
    assert tower_flops(DATA) == pytest.approx(0.642e12, rel=0.01)
    assert connector_flops(DATA, QWEN2) == 2 * 728 * (1152 * 896 + 896 * 896)
    # Published counts without embeddings: Qwen2-0.5B 0.36 B; Phi-2 2.78 B less 2 x 51200 x 2560.
    assert layer_parameters(QWEN2) == pytest.approx(0.36e9, rel=0.01)
    assert layer_parameters(PHI2) == pytest.approx(2.78e9 - 2 * 51200 * 2560, rel=0.01)
    assert prefill_flops(DATA, QWEN2) == pytest.approx(2 * 0.358e9 * 770, rel=0.06)
    assert kv_bytes(QWEN2, 1) == 2 * 24 * 2 * 64 * 2
    assert kv_bytes(PHI2, 2048) == 2 * 32 * 2560 * 2 * 2048


def test_the_parameters_of_the_models_are_the_released_ones() -> None:
    """What a bundle's manifest counts: embeddings once where they are tied; norms and biases are the rest."""
    assert layer_parameters(QWEN2) + 151936 * 896 == pytest.approx(QWEN2["language_parameters"], rel=1e-3)
    assert layer_parameters(PHI2) + 2 * 51200 * 2560 == pytest.approx(PHI2["language_parameters"], rel=1e-3)


def test_bytes_of_phi2_are_those_of_our_export() -> None:
    record = json.loads((ROOT / "benchmarks/results/export/real_size.json").read_text())
    (row,) = [row for row in record["exports"] if row["name"] == "phi2-siglip"]
    assert row["files"]["language q4_k_m"] == PHI2["q4_k_m_bytes"]
    connector = 2 * (1152 * 2560 + 2560 * 2560)
    assert row["files"]["vision fp16"] - connector == pytest.approx(DATA["tower"]["fp16_bytes"], rel=1e-3)


def test_the_goals_of_the_orin_nano_stand_as_they_were_set() -> None:
    found = figures("orin-nano-8gb", "qwen2-0.5b-siglip")
    goals = {key: found[key].goal for key in ("tower", "first_token", "decode", "peak")}
    assert goals == {"tower": 90, "first_token": 200, "decode": 180, "peak": 1600}
    assert found["decode"].roof == pytest.approx(257, abs=0.5)
    for key, goal in goals.items():
        assert goal is not None
        assert found[key].low <= goal <= found[key].high, key  # none was set beyond what was thought possible


def test_ranges_are_ordered_and_below_their_roof() -> None:
    for board in DATA["boards"]:
        assert board in BOARDS
        for model in DATA["models"]:
            for figure in expected_figures(board, model):
                assert 0 < figure.low < figure.high
                for value in (figure.low, figure.high):
                    share = figure.share_of_roof(value)
                    assert share is None or 0 < share < 1


def test_a_value_is_called_by_its_place() -> None:
    decode = Figure(
        key="decode", title="", unit="tokens/s", low=80, high=190, roof=250, arithmetic="", goal=180
    )
    assert decode.verdict(100) == "within, goal missed"
    assert decode.verdict(185) == "within, goal met"
    assert decode.verdict(79) == "worse, goal missed"
    assert decode.verdict(191) == "better, goal met"
    assert decode.share_of_roof(125) == 0.5
    tower = Figure(key="tower", title="", unit="ms", low=70, high=120, roof=40, arithmetic="", goal=None)
    assert [tower.verdict(value) for value in (60, 100, 130)] == ["better", "within", "worse"]
    assert tower.share_of_roof(80) == 0.5


def test_published_figures_imply_what_the_ranges_say() -> None:
    nano, nx = DATA["published"][0], DATA["published"][1]
    assert implied(nano) == "tower 32% of 16.7 TFLOPS, prefill 26% of 16.7 TFLOPS"
    assert "tower 51%" in implied(nx)
    # Qwen3-VL-2B's tower: 24 layers of 1024 and 4096 over 1060 patches; merger and three deepstack mergers of
    # 4096 x 4096 + 4096 x 2048 over 265 tokens.
    tower = 24 * (8 * 1060 * 1024**2 + 4 * 1060 * 1024 * 4096 + 4 * 1060**2 * 1024)
    assert tower + 4 * 2 * 265 * (4096 * 4096 + 4096 * 2048) == pytest.approx(
        1e12 * nano["tower_tflop"], rel=0.02
    )
