"""What is compared: a cell for each bundle, runtime and pair of variants, and the first one again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.benchmarks.evals.cells import Wish, chosen_cells
from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import UsageError

from .pace import Amount
from .peers.rivals import Absent, RivalCell
from .worker import Request

CONTROL = "again"  # suffix of the A/A control's name
_MOST_MEMORY = 0.9  # of what is available, for all cells together
_FLOAT32_BYTES = 4
_QUICK_BLOCKS, _QUICK_S_PER_GB = 4, 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a comparison does.

    Attributes:
        bundles: by their names in the comparison.
        cells: the first one is what the others are compared with; the last one is the first one again.
        request: what every run does.
        amount: how often.
        within_s: seconds after which it ends, whatever is done by then.
        quick: it is only a look, and makes no claim.
        roofline: measure what the machine can do at most, too.
        growth: measure how the first row that reads the bundle grows, too.
        rivals: rows of other programs, measured in the same blocks.
        absent: those that were asked for and are not there.
        accuracy: how near each row's answer is to the reference's, by its name; with rivals alone.
        reference: its name.
    """

    bundles: Mapping[str, Bundle]
    cells: tuple[Cell, ...]
    request: Request
    amount: Amount
    within_s: float | None = None
    quick: bool = False
    roofline: bool = False
    growth: bool = False
    rivals: tuple[RivalCell, ...] = ()
    absent: tuple[Absent, ...] = ()
    accuracy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str = ""

    @property
    def rows(self) -> tuple[Cell | RivalCell, ...]:
        """All that is measured, in its order: rivals stand before the control."""
        return (*self.cells[:-1], *self.rivals, self.cells[-1])


def quick_plan(plan: Plan, at_least_s: float) -> Plan:
    """The same cells, for a look: one session, little warm-up, a bound that grows with the weights."""
    weights = sum(cell_bytes(cell, plan.bundles[cell.model]) for cell in plan.cells)
    bound = plan.within_s or at_least_s + _QUICK_S_PER_GB * weights / 1e9
    amount = Amount(sessions=1, blocks=_QUICK_BLOCKS, warm_up_s=0.0, warm_up_runs=2, alone=False)
    return replace(plan, amount=amount, within_s=bound, quick=True)


def plan_cells(bundles: Mapping[str, Bundle], wish: Wish) -> tuple[Cell, ...]:
    """Every cell that was asked for, and the first one again.

    Raises:
        BundleError, MissingExtraError, UsageError: as `chosen_cells`.
    """
    cells = chosen_cells(bundles, wish)
    return (*cells, replace(cells[0], name=f"{cells[0].name} {CONTROL}"))


def cell_files(cell: Cell, bundle: Bundle) -> list[Path]:
    """What a cell reads its weights from: what must be on the device."""
    files = [bundle.path(TOKENIZER_FILE)]
    for part, name in (("vision", cell.options.vision), ("language", cell.options.language)):
        if name is not None:
            files += map(bundle.path, bundle.variant(part, name).files)  # type: ignore[arg-type]
    if cell.options.checkpoint is not None:
        files += Checkpoint(cell.options.checkpoint, sources=cell.options.sources).weight_files
    return files


def cell_bytes(cell: Cell, bundle: Bundle) -> int:
    """Size on disk of a cell's weights; a tokenizer is no weights."""
    return sum(path.stat().st_size for path in cell_files(cell, bundle)[1:])


def check_memory(plan: Plan, available_bytes: int | None) -> None:
    """Refuse a comparison whose cells do not fit in memory together: their times would be the disk's.

    Raises:
        UsageError: says how much they need, and how much there is.
    """
    needed = 0
    for cell in plan.cells:
        bundle = plan.bundles[cell.model]
        if cell.options.checkpoint is None:
            needed += cell_bytes(cell, bundle)
        else:
            needed += _FLOAT32_BYTES * sum(part.parameters for part in bundle.manifest.parts.values())
    needed += sum(rival.needed_bytes for rival in plan.rivals)
    if available_bytes is not None and needed > _MOST_MEMORY * available_bytes:
        raise UsageError(
            f"these {len(plan.rows)} rows hold {needed / 1e9:.1f} GB of weights at once, and "
            f"{available_bytes / 1e9:.1f} GB are available: name fewer with --runtime, "
            "--vision, --language, --peers."
        )
