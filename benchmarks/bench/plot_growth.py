"""How stages grow with an amount: every run, and the fitted line with its exponent."""

from typing import Any

import numpy as np

from .figures import Record
from .growth import AXES
from .palette import STAGE_COLOURS
from .plot import plain_log_axis


def draw_growth(record: Record) -> Any:
    """The figure, or None where growth was not measured."""
    from matplotlib.figure import Figure

    growth = record.get("growth")
    if not growth or not growth["curves"]:
        return None
    axes_named = [axis for axis in AXES if any(curve["axis"] == axis for curve in growth["curves"])]
    figure = Figure(figsize=(4 * len(axes_named), 4), layout="constrained")
    for axes, axis in zip(np.ravel(figure.subplots(1, len(axes_named))), axes_named, strict=True):
        for curve in growth["curves"]:
            if curve["axis"] == axis:
                _draw_curve(axes, curve)
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log_axis(axes.xaxis, (1, 2, 3, 5) if axis == "pictures" else (1, 3))
        plain_log_axis(axes.yaxis, (1, 3))
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel("ms")
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{growth['cell']}: growth, with the exponent and its 95 % interval")
    return figure


def _draw_curve(axes: Any, curve: Record) -> None:
    colour, fit = STAGE_COLOURS[curve["stage"]], curve["exponent"]
    for point in curve["points"]:
        axes.plot([point["x"]] * len(point["ms"]), point["ms"], ".", color=colour, alpha=0.5)
    xs = np.array([point["x"] for point in curve["points"]], dtype=np.float64)
    medians = np.log([np.median(point["ms"]) for point in curve["points"]])
    label = curve["stage"]
    if fit is not None:
        label += f" ^{fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]"
        line = np.exp(medians.mean() + fit["exponent"] * (np.log(xs) - np.log(xs).mean()))
        axes.plot(xs, line, color=colour, label=label)
    else:
        axes.plot(xs, np.exp(medians), color=colour, label=label)
