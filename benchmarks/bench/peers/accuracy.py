"""How near a row's answer is to the reference's: what its speed is worth.

The reference answers the request greedily; then every row is given these very tokens, and its distributions
over each next one are compared, as `verify` does (docs/measuring.md). Nobody is timed meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.benchmarks.bench.worker_process import Worker
from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.errors import BackendError
from tinyllava_edge.metrics import kl_divergence, top1_agreement

from .rivals import Absent, RivalCell

Logits = npt.NDArray[np.float32]
Accuracy = Mapping[str, Any]


def measure_accuracy(
    reference: Cell,
    cells: Sequence[Cell],
    rivals: Sequence[RivalCell],
    request: Request,
    folder: Path,
    on_row: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Accuracy], list[Absent]]:
    """Accuracy of every row by its name, and the rivals that could not answer at all.

    Args:
        reference: what the others are held against; it may be one of `cells`.
        cells: the bundle's own.
        rivals: the others.
        request: what is asked.
        folder: for logits on the way.
        on_row: called with a row's name before it is opened.

    Raises:
        BackendError: the reference or the bundle's own cells do not answer.
    """
    on_row(reference.name)
    with closing(Worker(reference, request)) as worker:
        worker.open()
        path = folder / "reference.npy"
        ids: list[int] = worker.ask("forced", ids=None, output=str(path))["ids"]
    expected: Logits = np.load(path)
    found: dict[str, Accuracy] = {}
    absent = []
    rows: list[Cell | RivalCell] = [*(cell for cell in cells if cell.name != reference.name), *rivals]
    for cell in rows:
        on_row(cell.name)
        try:
            found[cell.name] = _accuracy_of(cell, request, ids, expected, folder / "logits.npy")
        except BackendError as error:
            if isinstance(cell, Cell):
                raise
            absent.append(Absent(cell.name, str(error)))
    return found, absent


def _accuracy_of(
    cell: Cell | RivalCell, request: Request, ids: Sequence[int], expected: Logits, path: Path
) -> Accuracy:
    """Of one row in a process of its own; what it cannot tell is None."""
    with closing(Worker(cell, request)) as worker:
        facts = worker.open()
        has_logits = worker.ask("forced", ids=list(ids), output=str(path))["written"]
        logits: Logits | None = np.load(path) if has_logits else None
        is_asked = isinstance(cell, RivalCell)
        warm = worker.ask("requests")["warm"] if is_asked else {}
        answered = None if facts.get("language_only") else warm.get("output_ids")
    if logits is not None:
        logits = logits[
            :, : expected.shape[1]
        ]  # a checkpoint for transformers may have a row for <image> more
    if logits is not None and logits.shape != expected.shape:
        raise BackendError(
            f"{cell.name}: logits {list(logits.shape)}, expected {list(expected.shape)}: another vocabulary?"
        )
    return {
        "mean_kld": None if logits is None else float(kl_divergence(expected, logits).mean()),
        "top1_agreement": None if logits is None else top1_agreement(expected, logits),
        "tokens": len(ids),
        "same_tokens": None if answered is None else _common(ids, answered),
    }


def _common(expected: Sequence[int], found: Sequence[int]) -> int:
    """Tokens at the start of a greedy answer that are the reference's."""
    pairs = enumerate(zip(expected, found, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(expected), len(found)))
