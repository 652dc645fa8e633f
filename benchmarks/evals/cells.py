"""Which variants of which bundles are asked, by which runtimes: a cell for each, of `eval` and `bench`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tinyllava_edge.benchmarks.verify.climb import chosen_variants
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import NANO, bundle_path, check_sources, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingExtraError, UsageError
from tinyllava_edge.runtimes.auto import settle_runtime
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.registry import CPU_RUNTIME, language_target, runtime_entries

from .cell import Cell

ALL = "all"
_TORCH = "torch"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks for; empty where the default is meant.

    Attributes:
        runtimes: the first one's first cell is what the others are compared with.
        vision: variants, each with every language variant; by default the most precise one. ("all",) means
            the pairs that `verify` measures: the first so, each other one with the first language variant.
        budgets: of visual tokens, each vision variant at each of them; ("all",) means those there are, and by
            default a variant's name says it.
        language: variants; by default all of them.
        checkpoints: for runtimes that compute from one; by default where the bundle says it came from.
        options: the others; `sources` and `allow_pickle` reach only runtimes that compute from a checkpoint.
    """

    runtimes: tuple[str, ...] = ()
    vision: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    options: BackendOptions = field(default_factory=BackendOptions)


def named_bundles(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """Bundles under the shortest names that tell them apart: their directories', or paths; nano is `nano`.

    Raises:
        UsageError: one is given twice.
    """
    for names in (
        [NANO if bundle.root == bundle_path(NANO) else bundle.root.resolve().name for bundle in bundles],
        [str(bundle.root) for bundle in bundles],
    ):
        if len(set(names)) == len(bundles):
            return dict(zip(names, bundles, strict=True))
    raise UsageError("a bundle is given twice: give each one once.")


def chosen_cells(bundles: Mapping[str, Bundle], wish: Wish) -> tuple[Cell, ...]:
    """Every cell that was asked for, in the order of bundles, runtimes, vision and language variants.

    Raises:
        BundleError: there is no such variant.
        MissingExtraError: a runtime's package is not installed.
        UsageError: there is no such runtime, or no checkpoint for it.
    """
    check_sources(wish.options.sources)
    checkpoints = {
        name: find_checkpoint(bundle, wish.checkpoints, wish.options.sources)
        for name, bundle in bundles.items()
    }
    if wish.checkpoints and not any(checkpoints.values()):
        raise UsageError(
            f"{', '.join(map(str, wish.checkpoints))}: is not the checkpoint that "
            f"{', '.join(bundles)} came from, or torch is not installed to read it."
        )
    cells: list[Cell] = []
    for name, bundle in bundles.items():
        default = ((_TORCH,) if checkpoints[name] else ()) + (CPU_RUNTIME,)
        settled = [settle_runtime(asked, bundle) for asked in wish.runtimes or default]
        runtimes = tuple(found.runtime for found in settled)
        for runtime, found in zip(runtimes, settled, strict=True):
            _check_installed(runtime)
            own = replace(wish, vision=wish.vision or found.variants)
            for cell in _cells_of(name, bundle, runtime, checkpoints[name], own):
                cells.append(replace(cell, name=_cell_name(cell, len(bundles), runtimes)))
    return tuple(cells)


def _cells_of(name: str, bundle: Bundle, runtime: str, checkpoint: Path | None, wish: Wish) -> list[Cell]:
    """Cells of one bundle and runtime, not named yet."""
    vision_entry, language_entry = runtime_entries(runtime)
    reads_checkpoint = vision_entry.reads_checkpoint or language_entry.reads_checkpoint
    if reads_checkpoint and checkpoint is None:
        raise UsageError(
            f"runtime {runtime} needs the checkpoint that {name} came from: give it with --checkpoint."
        )
    vision = _names_of(bundle, "vision", wish.vision or (bundle.variant("vision").name,))
    budgets = _budgets_of(bundle, wish.budgets)
    if budgets:
        vision = [bundle.at_tokens(n).variant("vision", name).name for name in vision for n in budgets]
    language = _names_of(bundle, "language", wish.language or (ALL,), runtime)
    options = replace(wish.options, sources=None, allow_pickle=False)
    if reads_checkpoint:
        options = replace(wish.options, checkpoint=checkpoint)
    seen: list[dict[str, Any]] = [{"vision": one} for one in vision]
    if vision_entry.reads_checkpoint:
        seen = [{"tokens": tokens} for tokens in budgets] or [{}]
    language = [None] if language_entry.reads_checkpoint else language
    return [
        Cell("", name, runtime, bundle.root, replace(options, **one, language=other))
        for one in seen
        for other in (language[:1] if wish.vision == (ALL,) and one != seen[0] else language)
    ]


def torch_cell(name: str, bundle: Bundle, wish: Wish) -> Cell | None:
    """A bundle's checkpoint in float32, where it is here and torch is installed."""
    if (checkpoint := find_checkpoint(bundle, wish.checkpoints, wish.options.sources)) is None:
        return None
    cell, *_ = _cells_of(name, bundle, _TORCH, checkpoint, wish)
    return replace(cell, name=_cell_name(cell, 1, ()))


def _budgets_of(bundle: Bundle, asked: tuple[str, ...]) -> Sequence[int]:
    """Numbers of visual tokens that were asked for, most first.

    Raises:
        UsageError: one is no number.
    """
    if asked == (ALL,):
        return bundle.manifest.budgets
    if odd := next((word for word in asked if not word.isdecimal()), None):
        raise UsageError(f"--budgets {odd!r:.40}: expected numbers of visual tokens, or 'all'.")
    return sorted({int(word) for word in asked}, reverse=True)


def _names_of(
    bundle: Bundle, part: Literal["vision", "language"], names: tuple[str, ...], runtime: str = ""
) -> list[str | None]:
    """The named variants, or with "all" the verified ones; one that is not verified is measured if named.

    Of names for several runtimes each takes those that it reads; where it reads none, it says so itself.
    """
    if names != (ALL,):
        named = chosen_variants(bundle, part, names)
        target = runtime and language_target(runtime)
        return [variant.name for variant in named if variant.target == target] or [v.name for v in named]
    variants = chosen_variants(bundle, part, (), runtime)
    return [v.name for v in variants if v.status == "verified"] or [v.name for v in variants]


def _cell_name(cell: Cell, num_bundles: int, runtimes: Sequence[str]) -> str:
    """As short as it is unique."""
    model = [cell.model] if num_bundles > 1 else []
    chosen = (cell.options.vision, cell.options.language)
    if chosen == (None, None):
        budget = [] if cell.options.tokens is None else [f"{cell.options.tokens} tokens"]
        return " ".join([*model, cell.runtime, "fp32", *budget])
    several = len([name for name in runtimes if name != _TORCH]) > 1
    variants = " + ".join(name or "fp32" for name in chosen)
    return " ".join([*model, *([cell.runtime] if several else []), variants])


def _check_installed(runtime: str) -> None:
    for entry in runtime_entries(runtime):
        if not entry.is_installed:
            raise MissingExtraError(
                f"runtime {runtime} needs the package {entry.package}: {entry.install_line}, or leave that "
                "runtime out."
            )


def find_checkpoint(bundle: Bundle, given: Sequence[Path] = (), sources: Path | None = None) -> Path | None:
    """The checkpoint that a bundle came from, where it is here and torch is installed.

    Args:
        bundle: says its hash.
        given: where to look; by default where the bundle says it came from.
        sources: where the base is of one that is an adapter alone.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        return None
    for path in given or (checkpoint_path(bundle.manifest.source.name),):
        try:
            if Checkpoint(path, sources=sources).sha256 == bundle.manifest.source.checkpoint_sha256:
                return path
        except (CheckpointError, OSError):
            continue
    return None
