"""A plan with rivals in it: found, prepared, tried, and held against the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tinyllava_edge.benchmarks.bench.plan import Plan
from tinyllava_edge.benchmarks.evals.cells import Wish, torch_cell
from tinyllava_edge.console import note

from .accuracy import measure_accuracy
from .prepared import prepare
from .rivals import Absent, Places, RivalCell, plan_rivals


@contextmanager
def with_rivals(plan: Plan, names: Sequence[str], places: Places, wish: Wish) -> Iterator[Plan]:
    """The plan with a row for each rival of its first bundle; what they read is there until the end.

    Args:
        plan: without rivals.
        names: of `rivals.RIVALS`; with none the plan stays as it is.
        places: where they and their files are.
        wish: of which the plan is: where its checkpoint is, torch in float32 is what answers are held
            against, whether or not it is a row; else the first row is.

    Raises:
        BackendError: one of the bundle's own rows does not answer.
        ImageError: the picture cannot be read.
    """
    if not names:
        yield plan
        return
    model, bundle = next(iter(plan.bundles.items()))
    cells = [cell for cell in plan.cells[:-1] if cell.model == model]
    with TemporaryDirectory(prefix="peers-") as folder:
        prepared = prepare(bundle, plan.request, Path(folder))
        found = list(plan_rivals(names, bundle, cells, places, prepared))
        rivals = [one for one in found if isinstance(one, RivalCell)]
        reference = torch_cell(model, bundle, wish) or cells[0]
        accuracy, failed = measure_accuracy(
            reference,
            cells,
            rivals,
            plan.request,
            Path(folder),
            lambda name: note(f"{name}: its answer, not timed"),
        )
        absent = [*(one for one in found if isinstance(one, Absent)), *failed]
        for one in absent:
            note(f"{one.name}: not measured: {one.why}")
        works = tuple(rival for rival in rivals if rival.name in accuracy)
        yield replace(plan, rivals=works, absent=tuple(absent), accuracy=accuracy, reference=reference.name)
