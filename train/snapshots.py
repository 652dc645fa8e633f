"""The state of a run on the disk, so that it goes on after any interruption as if there had been none."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyllava_edge.atomic_files import fsync, output_directory, write_json
from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.errors import OutputError, UsageError

_STATE, _SEAL = "state.pt", "seal.json"
_KEPT = 2  # the newest, and one more in case the disk spoils it


class Snapshots:
    """Saves the state every few steps, and restores the newest one that is whole.

    A snapshot holds what is trained, optimisers, schedules and random state. The order of the samples follows
    from the step alone. A snapshot whose hash is not the one in its seal is removed, as if never taken.

    Args:
        folder: where the snapshots are, one directory each.
        model: its parameters that require gradients are what is trained.
        every: steps from one snapshot to the next; 0 takes none.
    """

    def __init__(self, folder: Path, model: nn.Module, every: int) -> None:
        self._folder, self._every = folder, every
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        while (newest := self._newest()) is not None and not _is_whole(newest):
            shutil.rmtree(newest)
        self.step = 0 if newest is None else _step_of(newest)

    def restore(self, optimizers: Sequence[torch.optim.Optimizer], schedules: Sequence[Any]) -> int:
        """Put everything back to where the newest snapshot was taken; how many steps that was."""
        newest = self._newest()
        if newest is None:
            return 0
        try:
            state = torch.load(newest / _STATE, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, parameter in self._trained.items():
                    parameter.copy_(state["trained"][name])
            for part, saved in zip((*optimizers, *schedules), state["optimization"], strict=True):
                part.load_state_dict(saved)
            torch.set_rng_state(state["rng"])
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        except Exception as error:  # torch raises many types on what it does not expect
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise UsageError(
                f"{newest}: not a state of this run, or of another version of this program ({reason}). Begin "
                "anew with --force."
            ) from None
        return self.step

    def save_if_due(
        self, step: int, optimizers: Sequence[torch.optim.Optimizer], schedules: Sequence[Any]
    ) -> None:
        """Take a snapshot where `step` is a multiple of `every`."""
        if self._every and step % self._every == 0:
            self.save(step, optimizers, schedules)

    def save(self, step: int, optimizers: Sequence[torch.optim.Optimizer], schedules: Sequence[Any]) -> None:
        """Take a snapshot after a step, where there is none of it yet."""
        target = self._folder / f"step-{step:08d}"
        if not step or target.exists():
            return
        state = {
            "trained": {name: parameter.detach() for name, parameter in self._trained.items()},
            "optimization": [part.state_dict() for part in (*optimizers, *schedules)],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }
        try:
            with output_directory(target) as directory:
                torch.save(state, directory / _STATE)
                fsync(directory / _STATE)
                write_json(directory / _SEAL, {"sha256": sha256_of_file(directory / _STATE)})
        except RuntimeError as error:  # torch's word for a write that failed
            raise OutputError(f"{target}: could not be written ({error}). Look at its disk.") from None
        for old in self._all()[:-_KEPT]:
            shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))

    def _newest(self) -> Path | None:
        return next(reversed(self._all()), None)


def _step_of(snapshot: Path) -> int:
    return int(snapshot.name.removeprefix("step-"))


def _is_whole(snapshot: Path) -> bool:
    try:
        seal = json.loads((snapshot / _SEAL).read_text(encoding="utf-8"))
        return bool(seal["sha256"] == sha256_of_file(snapshot / _STATE))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
