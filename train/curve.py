"""The loss of a run as a picture."""

from pathlib import Path

from .data import read_lines


def write_curve(log: Path, target: Path) -> None:
    """Draw the losses of a training log as PNG: of the steps, and of a validation set."""
    from matplotlib.figure import Figure

    lines = read_lines(log)
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.add_subplot()
    for stage in stages:
        points = [(line["step"], line["loss"]) for line in lines if line["stage"] == stage]
        axes.plot(*zip(*points, strict=True), linewidth=1, label=stage)
    axes.set(title=stages[0], xlabel="step", ylabel="loss")
    if stages[1:]:
        axes.legend()
    figure.savefig(target, dpi=80)
