"""The loss of every stage as a picture."""

import json
from pathlib import Path


def write_curve(log: Path, target: Path) -> None:
    """Draw the losses of a training log, one panel a stage, as PNG."""
    from matplotlib.figure import Figure

    stages: dict[str, tuple[list[int], list[float]]] = {}
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        steps, losses = stages.setdefault(line["stage"], ([], []))
        steps.append(line["step"])
        losses.append(line["loss"])
    figure = Figure(figsize=(4 * len(stages), 3), layout="constrained")
    for index, (name, (steps, losses)) in enumerate(stages.items(), start=1):
        axes = figure.add_subplot(1, len(stages), index)
        axes.plot(steps, losses, linewidth=1)
        axes.set(title=name, xlabel="step", ylabel="loss")
    figure.savefig(target, dpi=80)
