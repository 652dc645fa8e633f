"""The steps of a check on this machine, in the order in which they are worth most to whoever reads them."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.module_process import module_command
from tinyllava_edge.runtimes.registry import CPU_RUNTIME, RUNTIMES, runtime_entries

from .modes import chosen_modes, restore_mode, set_mode
from .peers import peer_steps
from .probes import CHECKOUT, PROBES, REQUIRABLE, REQUIRE
from .steps import Step

GPU_RUNTIMES = tuple(name for name in RUNTIMES if any(entry.needs_gpu for entry in runtime_entries(name)))
_OURS = module_command("tinyllava_edge")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What an owner asks for; the fields are the command's options."""

    bundles: tuple[str, ...]
    modes: tuple[str, ...]
    soak_minutes: float
    peers: tuple[str, ...]
    peer_model: str
    runs: int
    tokens: int


def usable_runtimes(report: dict[str, Any] | None) -> tuple[str, ...]:
    """Those of ours that `doctor --json` calls usable here; the one without a GPU first, to compare with."""
    states = {state["name"]: state["usable"] for state in (report or {}).get("runtimes", ())}
    return tuple(name for name in (CPU_RUNTIME, *GPU_RUNTIMES) if states.get(name))


def first_step() -> Step:
    """What is installed, and what this machine can run."""
    return Step(name="install", commands=((*_OURS, "doctor", "--json"),), minutes=10, has_run=True)


def further_steps(wish: Wish, runtimes: tuple[str, ...], folder: Path) -> Iterator[Step]:
    """All steps behind the first one.

    Args:
        wish: what is asked for.
        runtimes: those that are usable here.
        folder: of the report; each bench has a directory in it.
    """
    here = ",".join(name for name in REQUIRABLE if not PROBES[name]())
    pytest = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(CHECKOUT),
    )
    yield Step(
        name="device-tests",
        commands=((*pytest, "-c", str(CHECKOUT / "pyproject.toml"), str(CHECKOUT / "tests/device")),),
        needs=("tests", "cuda"),
        variables={} if os.environ.get(REQUIRE) else {REQUIRE: here},
        minutes=120,
    )
    for bundle in wish.bundles:
        yield from _bundle_steps(bundle, wish, runtimes, folder)
    if wish.peers:
        first = Bundle.open(bundle_path(wish.bundles[0]))
        yield from peer_steps(wish.peers, first, wish.peer_model, folder)


def _bundle_steps(bundle: str, wish: Wish, runtimes: tuple[str, ...], folder: Path) -> Iterator[Step]:
    name = Path(bundle).name
    on_gpu = tuple(runtime for runtime in runtimes if runtime in GPU_RUNTIMES)
    target = "tensorrt-rtx" if not PROBES["tensorrt-rtx"]() and PROBES["tensorrt"]() else "tensorrt"
    yield Step(
        name=f"build-{name}",
        commands=((*_OURS, "build", bundle, "--target", target, "--json"),),
        needs=("cuda", target),
        minutes=120,
    )
    for runtime in runtimes:
        yield Step(
            name=f"verify-{name}-{runtime}",
            commands=((*_OURS, "verify", bundle, "--runtime", runtime, "--json"),),
            minutes=60,
            has_run=runtime == CPU_RUNTIME,
        )
    for mode in chosen_modes(wish.modes):
        words = ("--runtime", ",".join(runtimes), "--runs", str(wish.runs), "--tokens", str(wish.tokens))
        label = f"bench-{name}-{mode}" if mode else f"bench-{name}"
        bench = (*_OURS, "bench", bundle, *words, "-o", str(folder / label))
        yield Step(
            name=label,
            commands=(*set_mode(mode), bench),
            after=restore_mode() if mode else (),
            skip="" if runtimes else "no runtime is usable: see install",
            minutes=180,
            has_run=not on_gpu,
        )
    if wish.soak_minutes:
        module = module_command("tinyllava_edge.benchmarks.hardware.soak")
        yield Step(
            name=f"soak-{name}",
            commands=((*module, bundle, (on_gpu or (CPU_RUNTIME,))[0], str(wish.soak_minutes)),),
            minutes=wish.soak_minutes + 15,
            has_run=not on_gpu,
        )
