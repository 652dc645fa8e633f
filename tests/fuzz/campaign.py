"""Many inputs of many kinds, on all cores, and the table of what became of them."""

import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.fuzz.worker import OUTCOMES, Outcome, run_in_worker

_CHUNK = 50  # inputs that a core takes at a time
# Imported once, before the workers are forked. What computes is used in them alone: its threads do not fork.
_HEAVY = (
    *(
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "onnx",
        "onnxruntime",
        "gguf",
        "sentencepiece",
        "matplotlib.pyplot",
    ),
    *(
        "cryptography.hazmat.primitives.serialization",
        "tinyllava_edge.export.pipeline",
        "tinyllava_edge.train.finetune",
    ),
    *(
        "tinyllava_edge.benchmarks.verify.climb",
        "tinyllava_edge.benchmarks.bench.report",
        "tinyllava_edge.runtimes.ort",
    ),
    *(
        "tinyllava_edge.runtimes.llamacpp",
        "tinyllava_edge.benchmarks.evals.scores",
        "tests.fuzz.corpus",
        "tools.readme",
    ),
)
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Campaign:
    """How many inputs of each kind are read, and within how many seconds each."""

    corpus: Path
    seed: int
    count: int
    timeout: float
    jobs: int = 0


def build_apart(folder: Path) -> str:
    """Build the corpus in a process of its own; returns its hash."""
    prepare()
    with _FORK.Pool(1) as pool:
        return pool.apply(_build, (folder,))


def run_campaign(campaign: Campaign, kinds: Sequence[str]) -> list[Outcome]:
    """Read all inputs; progress goes to standard error."""
    tasks = [
        (campaign, name, range(start, min(start + _CHUNK, campaign.count)))
        for start in range(-1, campaign.count, _CHUNK)  # -1 is the good file
        for name in kinds
    ]
    found: list[Outcome] = []
    with _FORK.Pool(campaign.jobs or len(os.sched_getaffinity(0))) as pool:
        for outcomes in pool.imap_unordered(_run, tasks):
            found += outcomes
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{len(found)} of {campaign.count * len(kinds)} inputs ")
    order = {name: place for place, name in enumerate(kinds)}
    return sorted(found, key=lambda outcome: (order[outcome.kind], outcome.index))


def table(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Kind -> inputs and how many came to each outcome; the last row is the sum."""
    rows: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        for name in (outcome.kind, "all"):
            row = rows.setdefault(name, dict.fromkeys(("inputs", *OUTCOMES), 0))
            row["inputs"] += 1
            row[outcome.outcome] += 1
    return {**{name: row for name, row in rows.items() if name != "all"}, "all": rows["all"]}


def faults_by_place(faults: Sequence[Outcome]) -> list[tuple[tuple[str, str, str], list[int]]]:
    """Faults with the same place in the source together."""
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for fault in faults:
        places[fault.kind, fault.outcome, fault.where].append(fault.index)
    return sorted(places.items())


def prepare() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ["COLUMNS"] = "200"
    for name in _HEAVY:
        import_module(name)
    import torch

    torch.set_num_threads(1)


def _build(folder: Path) -> str:
    from tests.fuzz.corpus import build_corpus

    return build_corpus(folder)


def _run(task: tuple[Campaign, str, range]) -> list[Any]:
    """The good file (-1) is no input; one that is not taken would make all of them worthless."""
    campaign, name, indices = task
    found = list(run_in_worker(campaign.corpus, name, campaign.seed, indices, timeout=campaign.timeout))
    for good in [outcome for outcome in found if outcome.index < 0]:
        found.remove(good)
        if good.outcome != "ok":
            raise AssertionError(f"the good file of {name!r} is not taken: {good.outcome} {good.detail}")
    return found
