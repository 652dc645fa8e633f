"""One bundle, runtime and pair of variants. By itself: what a measured process imports counts."""

from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.runtimes.base import BackendOptions


@dataclass(frozen=True)
class Cell:
    """What is asked or measured: its name and that of its bundle are unique among those of one command."""

    name: str
    model: str
    runtime: str
    bundle: Path
    options: BackendOptions  # without variants where the runtime computes from the checkpoint
