"""The loss of every stage as a picture."""

from pathlib import Path

from .data import read_lines


def write_curve(log: Path, target: Path) -> None:
    """Draw the losses of a training log, one panel a stage, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages: dict[str, tuple[list[int], list[float]]] = {}
    for line in read_lines(log):
        steps, losses = stages.setdefault(line["stage"], ([], []))
        steps.append(line["step"])
        losses.append(line["loss"])
    figure = Figure(figsize=(4 * len(stages), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, (steps, losses)) in enumerate(stages.items(), start=1):
        axes = figure.add_subplot(1, len(stages), index)
        axes.plot(steps, losses, linewidth=1)
        axes.set(title=name, xlabel="step", ylabel="loss")
    figure.savefig(target, dpi=80)
