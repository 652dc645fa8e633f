"""What a run says of itself on its way: one JSON object a step, and a bar."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID
from transformers import TrainerCallback

from tinyllava_edge.errors import DataError

STAGE, VALIDATION = "finetune", "validation"  # of a step, of a look at the validation set


@dataclass(frozen=True)
class TrainingLog:
    """The file that the first process writes."""

    path: Path
    seconds_before: float  # of the run's part before an interruption

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class JsonLines(TrainerCallback):
    """Writes the log and moves the bar; ends a run whose loss is not finite, in every process alike.

    Args:
        log: None in all processes but the first.
        bar: of the steps.
    """

    def __init__(self, log: TrainingLog | None, bar: Progress) -> None:
        self._log, self._bar = log, bar
        self._task: TaskID | None = None
        self._began = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the bar where the run goes on."""
        self._began = time.monotonic()
        if self._log is not None:
            self._task = self._bar.add_task(STAGE, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Write a step's line.

        Raises:
            DataError: its loss is not finite. No checkpoint of it has been taken.
        """
        values = logs or {}
        if "loss" in values:
            self._write(STAGE, state.global_step, values["loss"], values)
        elif "eval_loss" in values:
            self._write(VALIDATION, state.global_step, values["eval_loss"], {})

    def _write(self, stage: str, step: int, loss: float, values: Mapping[str, float]) -> None:
        if not math.isfinite(loss):
            raise DataError(
                f"{stage}: the loss of step {step} is not finite. Lower the learning rate, or compute in "
                "bf16 or fp32. The snapshots before it stay."
            )
        if self._log is None:
            return
        more = {key: values[key] for key in ("learning_rate", "grad_norm") if key in values}
        if not math.isfinite(more.get("grad_norm", 0.0)):  # in fp16, whose scaler leaves the step out
            more["grad_norm"] = None  # type: ignore[assignment]
        seconds = round(self._log.seconds_before + time.monotonic() - self._began, 1)
        self._log.write(stage=stage, step=step, loss=loss, **more, seconds=seconds)
