"""What a device is expected to do, written down before any run: ranges, their arithmetic, and the roof.

The data is expectations.json beside this file, the boards are `boards.BOARDS`. A range is what the arithmetic
gives with the least and the largest utilisation that others reached; the roof is the same with all of the
device.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tinyllava_edge.boards import BOARDS, Board

Record = dict[str, Any]
MS, PER_SECOND, MEGABYTES = "ms", "tokens/s", "MB"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One expected figure.

    Attributes:
        key: "tower", "prefill", "first_token", "decode" or "peak".
        low, high: bounds of the range.
        roof: what the whole device would give, or None where there is no such bound.
        arithmetic: how they come about.
        goal: what this project set itself, or None.
    """

    key: str
    title: str
    unit: str
    low: float
    high: float
    roof: float | None
    arithmetic: str
    goal: float | None = None

    @property
    def more_is_better(self) -> bool:
        """Whether a larger value is the better one."""
        return self.unit == PER_SECOND

    def share_of_roof(self, value: float) -> float | None:
        """What part of the roof a value reaches."""
        if self.roof is None:
            return None
        return value / self.roof if self.more_is_better else self.roof / value

    def verdict(self, value: float) -> str:
        """Where a measured value lies, within the range, better or worse; and whether the goal is met."""
        place = "within"
        if not self.low <= value <= self.high:
            place = "better" if (value > self.high) == self.more_is_better else "worse"
        if self.goal is None:
            return place
        met = value >= self.goal if self.more_is_better else value <= self.goal
        return f"{place}, goal {'met' if met else 'missed'}"


@cache
def read_expectations() -> Record:
    """The registered data."""
    found: Record = json.loads(Path(__file__).with_name("expectations.json").read_bytes())
    return found


def expected_figures(board: str, model: str) -> list[Figure]:
    """All figures of a model on a board.

    Args:
        board: a key of "boards" in the data, and of `BOARDS`.
        model: a key of "models".
    """
    data = read_expectations()
    kind, language = data["kinds"][data["boards"][board]["kind"]], data["models"][model]
    goals = data["goals"].get(board, {}).get(model, {})
    device = BOARDS[board]
    tower = _flops_figure(
        "tower",
        "tower and connector",
        tower_flops(data) + connector_flops(data, language),
        device,
        kind["vision_utilisation"],
    )
    prefill = _flops_figure(
        "prefill", "prefill", prefill_flops(data, language), device, kind["prefill_utilisation"]
    )
    decode = _decode(data, language, device, kind)
    figures = [
        tower,
        prefill,
        _first_token(tower, prefill, decode, kind),
        decode,
        _peak(data, language, kind),
    ]
    return [Figure(**{**vars(figure), "goal": goals.get(figure.key)}) for figure in figures]


def tower_flops(data: Record) -> float:
    """Of one picture: projections, feed-forward, attention (2 for each multiplication and addition)."""
    t = data["tower"]
    n, d, f = t["patches"], t["hidden"], t["intermediate"]
    layer = 8 * n * d * d + 4 * n * d * f + 4 * n * n * d
    return float(t["layers"] * layer + 2 * n * 3 * t["patch"] ** 2 * d)


def connector_flops(data: Record, language: Record) -> float:
    """Of two linear layers over the picture's tokens."""
    d, h = data["tower"]["hidden"], language["hidden"]
    return float(2 * data["prompt"]["picture_tokens"] * (d * h + h * h))


def prefill_flops(data: Record, language: Record) -> float:
    """Of the prompt: every weight but the embeddings, causal attention, one row of logits."""
    tokens = data["prompt"]["picture_tokens"] + data["prompt"]["text_tokens"]
    width = language["heads"] * language["head_size"]
    attention = 2 * tokens * tokens * width * language["layers"]
    return float(
        2 * layer_parameters(language) * tokens + attention + 2 * language["hidden"] * language["vocabulary"]
    )


def layer_parameters(language: Record) -> int:
    """Of all layers: projections and feed-forward, without norms and biases."""
    h, width = language["hidden"], language["heads"] * language["head_size"]
    keys = language["kv_heads"] * language["head_size"]
    feed_forward = (3 if language["gated"] else 2) * h * language["intermediate"]
    return int(language["layers"] * (2 * h * width + 2 * h * keys + feed_forward))


def kv_bytes(language: Record, positions: int) -> int:
    """Keys and values of so many positions in float16."""
    return int(4 * language["layers"] * language["kv_heads"] * language["head_size"] * positions)


def _flops_figure(key: str, title: str, flops: float, device: Board, utilisation: list[float]) -> Figure:
    roof = 1e3 * flops / device.float16_flops
    return Figure(
        key=key, title=title, unit=MS, low=roof / utilisation[1], high=roof / utilisation[0], roof=roof,
        arithmetic=f"{flops / 1e12:.3f} TFLOP / ({device.float16_flops / 1e12:g} TFLOPS x "
        f"{utilisation[1]:.0%} to {utilisation[0]:.0%})",
    )  # fmt: skip


def _decode(data: Record, language: Record, device: Board, kind: Record) -> Figure:
    prompt = data["prompt"]
    positions = prompt["picture_tokens"] + prompt["text_tokens"] + prompt["answer_tokens"] // 2
    read, kept = language["read_per_token_bytes"], kv_bytes(language, positions)
    (low, high), (least, most) = kind["decode_utilisation"], kind["token_overhead_ms"]
    ms = 1e3 * (read + kept) / device.bandwidth_bytes
    return Figure(
        key="decode", title="decode, Q4_K_M", unit=PER_SECOND,
        low=1e3 / (ms / low + most), high=1e3 / (ms / high + least), roof=device.bandwidth_bytes / read,
        arithmetic=f"({read / 1e6:.0f} MB of weights + {kept / 1e6:.0f} MB of keys and values) / "
        f"({device.bandwidth_bytes / 1e9:g} GB/s x {high:.0%} to {low:.0%}) + {least:g} to {most:g} ms; "
        "roof: the weights at all of the bandwidth",
    )  # fmt: skip


def _first_token(tower: Figure, prefill: Figure, decode: Figure, kind: Record) -> Figure:
    before = kind["before_tower_ms"]
    assert tower.roof is not None
    assert prefill.roof is not None
    return Figure(
        key="first_token", title="first token", unit=MS, low=before[0] + tower.low + prefill.low,
        high=before[1] + tower.high + prefill.high, roof=tower.roof + prefill.roof,
        arithmetic=f"{before[0]} to {before[1]} ms for the picture + tower + prefill",
    )  # fmt: skip


def _peak(data: Record, language: Record, kind: Record) -> Figure:
    weights, tower = language["q4_k_m_bytes"] / 1e6, data["tower"]["fp16_bytes"] / 1e6
    d, h = data["tower"]["hidden"], language["hidden"]
    connector = 2 * (d * h + h * h) / 1e6
    kept = kv_bytes(language, language["context"]) / 1e6
    other = [bytes_ / 1e6 for bytes_ in kind["other_bytes"]]
    fixed = weights + tower + connector + kept
    return Figure(
        key="peak", title="peak memory", unit=MEGABYTES, roof=None,
        low=fixed + other[0], high=fixed + other[1],
        arithmetic=f"language {weights:.0f} + tower {tower:.0f} + connector {connector:.0f} + keys and "
        f"values of {language['context']} positions {kept:.0f} + other {other[0]:.0f} to {other[1]:.0f}",
    )  # fmt: skip
