"""The loss of a run as a picture."""

from pathlib import Path

from .data import read_lines


def write_curve(log: Path, target: Path) -> None:
    """Draw the losses of a training log as PNG."""
    from matplotlib.figure import Figure

    lines = read_lines(log)
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    axes.set(title=lines[0]["stage"], xlabel="step", ylabel="loss")
    figure.savefig(target, dpi=80)
