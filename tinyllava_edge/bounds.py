"""Bounds on a metric. No numpy: the options of a command are made of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Gate:
    """A bound on one metric: `value <= limit` for "max", `value >= limit` for "min"; NaN never passes."""

    metric: str
    kind: Literal["max", "min"]
    limit: float

    def passes(self, value: float) -> bool:
        """Whether a measured value is within the bound."""
        return value <= self.limit if self.kind == "max" else value >= self.limit


def at_most(metric: str, limit: float) -> Gate:
    """A metric that must not be above `limit`."""
    return Gate(metric, "max", limit)


def at_least(metric: str, limit: float) -> Gate:
    """A metric that must not be below `limit`."""
    return Gate(metric, "min", limit)


def first_fault(gates: Iterable[Gate], figures: Mapping[str, float]) -> str:
    """The first gate that measured figures (metric -> value) do not pass, in words; "" where all pass."""
    for gate in gates:
        value = figures[gate.metric]
        if not gate.passes(value):
            bound = "at most" if gate.kind == "max" else "at least"
            return f"{gate.metric} is {value:.4g}, the gate is {bound} {gate.limit:g}"
    return ""
