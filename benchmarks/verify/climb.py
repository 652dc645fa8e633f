"""`tinyllava-edge verify`: climb the parity ladder and name the first stage that fails. docs/measuring.md."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.checkpoint.names import NANO, is_shipped
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BundleError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.gates import STAGES
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.registry import language_target

from .ladder import Check, Ladder, Report, StageResult, number, refused
from .reference import Reference
from .reference_checkpoint import CheckpointReference
from .reference_stored import StoredReference
from .stage_inputs import check_pixels, check_text
from .stage_language import OnRun, OnStage, check_language, language_stages
from .stage_metadata import check_metadata
from .stage_vision import check_connector, check_tower
from .stage_weights import check_weights
from .versions import package_versions

_MARKS = {"passed": Text("ok", "green"), "failed": Text("FAILED", "red"), "skipped": Text("-", "dim")}
# In the order of the chain; `check_language` has the stages behind them.
CHECKS: tuple[tuple[str, Callable[[Ladder], Iterator[StageResult]]], ...] = (
    ("weights", check_weights),
    ("metadata", check_metadata),
    ("text", check_text),
    ("pixels", check_pixels),
    ("tower", check_tower),
    ("connector", check_connector),
)


def planned_stages(ladder: Ladder) -> list[str]:
    """The stages that `climb` will begin, in order; the language model's, once for each pair of variants."""
    stages = ([*(stage for stage, _ in _checks(one)), *language_stages(one)] for one in ladder.by_budget())
    return [stage for some in stages for stage in some]


def _checks(ladder: Ladder) -> Sequence[tuple[str, Callable[[Ladder], Iterator[StageResult]]]]:
    """A smaller budget has a graph of its own, and all before it is what was looked at already."""
    return CHECKS[-2:] if ladder.further else CHECKS


def climb(ladder: Ladder, on_stage: OnStage = lambda stage: None, on_run: OnRun = lambda run: None) -> Report:
    """Compute every stage, also those behind a failed one where that is possible.

    Args:
        ladder: the bundle, what is expected of it, and how much is compared.
        on_stage: called with the name of each of `planned_stages` when it begins.
        on_run: called with each model behind its stages, before it is closed.
    """
    results: list[StageResult] = []
    for one in ladder.by_budget():
        for stage, check in _checks(one):
            on_stage(stage)
            try:
                for result in check(one):
                    results.append(result)
            except TinyLlavaEdgeError as error:
                results.append(refused(stage, "", error))
        results.extend(check_language(one, on_stage, on_run))
    results.sort(key=lambda result: STAGES.index(result.stage))
    return Report(
        runtime=ladder.runtime,
        reference=ladder.reference.name,
        results=tuple(results),
        versions=package_versions(),
        bundle=NANO if is_shipped(ladder.bundle.root) else ladder.bundle.root.resolve().name,
        source="its checkpoint"
        if isinstance(ladder.reference, CheckpointReference)
        else "the tensors stored in it",
    )


def open_reference(bundle: Bundle, given: Checkpoint | None, *, num_tokens: int = 128) -> Reference:
    """Torch on the checkpoint where there is one, the bundle's own reference tensors otherwise.

    Raises:
        BundleError: what it stores is damaged or impossible, or has no prompt.
        UsageError: the checkpoint is not the one that the bundle came from.
    """
    if given is None:
        stored = StoredReference(bundle)
        if not stored.prompts:
            raise BundleError(
                f"{bundle.root}: stores no prompt, for none fits its context. Give --checkpoint."
            )
        return stored
    return CheckpointReference(open_checkpoint(bundle, given), num_tokens=num_tokens)


def open_checkpoint(bundle: Bundle, given: Checkpoint) -> Checkpoint:
    """The checkpoint that a bundle was made from, with the template that was chosen then.

    Raises:
        CheckpointError: a file is missing or damaged.
        UsageError: it is another one.
    """
    source, prompt = bundle.manifest.source, bundle.manifest.prompt
    chosen = prompt.template.name if prompt.template_reason.startswith("given") else None
    checkpoint = replace(given, template=chosen)
    found = checkpoint.sha256
    if found != source.checkpoint_sha256:
        raise UsageError(
            f"{checkpoint} has sha256 {found[:12]}..., the bundle was made from {source.name} with "
            f"{source.checkpoint_sha256[:12]}...: give that checkpoint, or export this one."
        )
    if checkpoint.config.connector.budgets and len(bundle.manifest.budgets) == 1:
        return replace(checkpoint, tokens=bundle.manifest.budgets[0])
    return checkpoint


def opening_options(checkpoint: Checkpoint | None, threads: int | None) -> BackendOptions:
    """How the runtime is opened; only one that computes from the checkpoint is given it (`Ladder`)."""
    if checkpoint is None:
        return BackendOptions(threads=threads)
    return BackendOptions(
        checkpoint=checkpoint.path,
        sources=checkpoint.sources,
        allow_pickle=checkpoint.allow_pickle,
        threads=threads,
    )


def chosen_variants(
    bundle: Bundle, part: Literal["vision", "language"], names: tuple[str, ...], runtime: str = ""
) -> tuple[Variant, ...]:
    """The named variants of a part, or all that a runtime reads, in the manifest's order (precise first).

    Raises:
        BundleError: there is no such variant; the message lists those there are.
    """
    if names:
        wanted = [bundle.variant(part, name) for name in names]
        return tuple(variant for variant in bundle.manifest.variants if variant in wanted)
    reads = language_target(runtime) if runtime and part == "language" else ""
    found = [variant for variant in bundle.manifest.variants if variant.part == part]
    return tuple(variant for variant in found if reads in ("", variant.target))


def amount_compared(ladder: Ladder) -> dict[str, Any]:
    """What a result speaks of: variants, pictures, and tokens of each continuation (None: those stored)."""
    return {
        "variants": {
            "vision": [variant.name for variant in ladder.vision],
            "language": [variant.name for variant in ladder.language],
        },
        "num_pictures": min(ladder.num_pictures, len(ladder.reference.pictures)),
        "num_tokens": getattr(ladder.reference, "num_tokens", None),
    }


def report_table(report: Report) -> Table:
    """The ladder for people: one row for each stage and variant."""
    title = f"{report.runtime} against {report.reference}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "variant", "", "measured (gate)"):
        table.add_column(column, overflow="fold")
    for result in report.results:
        mark = _MARKS[result.status]
        table.add_row(result.stage, result.variant, mark, _about(result))
    return table


def _about(result: StageResult) -> str:
    """What was measured; counts of mistakes only where there are some."""
    if result.skipped:
        return result.skipped
    said = [_said(check) for check in result.checks if check.value or check.gate is None]
    return "; ".join(part for part in (", ".join(said), result.cause or result.detail) if part)


def _said(check: Check) -> str:
    return f"{check.metric} {number(check.value)}" + (f" ({check.bound})" if check.gate else "")
