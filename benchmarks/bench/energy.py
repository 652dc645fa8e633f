"""What a record says of power: joules of an answer, their source, and what nothing takes."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from .power import PowerWatch, Watts, includes, whole_of

Record = dict[str, Any]


def energy_of(samples: Sequence[Record]) -> Record | None:
    """Joules of an answer (medians): of each rail, and of the whole; None where power was not read.

    A rail that misses a reading takes its answer out: a sum of fewer rails is no smaller consumption.
    """
    measured = [sample["joules"] for sample in samples if "joules" in sample]
    if not measured:
        return None
    most = max(measured, key=len)
    measured = [joules for joules in measured if joules.keys() == most.keys()]
    rails = {name: median(joules[name] for joules in measured) for name in most}
    whole = median(whole_of(joules)[1] for joules in measured)
    generated = samples[0]["generated_tokens"]
    return {
        "answers": len(measured),
        "rails_j": rails,
        "whole_j": whole,
        "whole_j_per_token": whole / generated,
    }


def power_record(power: PowerWatch, idle: Watts | None) -> Record:
    """Where power was read, what the figure called whole includes, and what nothing takes."""
    rails = power.samples[-1][1] if power.samples else {}
    return {
        "source": power.source,
        "whole": includes(power.source, rails) if rails else None,
        "idle_w": idle,
        "idle_whole_w": whole_of(idle)[1] if idle else None,
    }
