"""The machine's roofs, and where each row's stages are below them."""

from typing import Any

import numpy as np

from .figures import Record, shown_cells
from .palette import STAGE_COLOURS, row_style

_STAGES = (("vision", "vision"), ("prefill", "prefill"), ("token", "per token"))


def draw_roofline(record: Record) -> Any:
    """The figure, or None where the machine was not measured."""
    from matplotlib.figure import Figure

    roof = record.get("roof")
    cells = [(i, cell) for i, cell in enumerate(shown_cells(record)) if cell.get("floors")]
    points = [
        (index, stage, colour, floor["flops"] / floor["bytes"], floor["flops"] / took / 1e6)
        for index, cell in cells
        for stage, colour in _STAGES
        if (floor := cell["floors"][stage]) and (took := _took_ms(cell, stage))
    ]
    if not roof or not points:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensities = [intensity for _, _, _, intensity, _ in points]
    reach = np.geomspace(min(intensities) / 3, max(intensities) * 3, 200)
    for place, (kind, rate) in enumerate(sorted(roof["gflops"].items(), key=lambda found: -found[1])):
        axes.plot(reach, np.minimum(rate, roof["read_gb_per_s"] * reach), color="black", linewidth=1)
        axes.annotate(
            f"{kind} {rate:.0f} GFLOP/s ({roof['by'][kind]})",
            (reach[-1], rate),
            ha="right",
            va=("bottom", "top", "bottom")[place % 3],
            fontsize="small",
        )
    for index, _, colour, intensity, rate in points:
        axes.plot(
            intensity,
            rate,
            row_style(index)["marker"],
            color=STAGE_COLOURS[colour],
            markeredgecolor=row_style(index)["color"],
            markeredgewidth=2,
            markersize=9,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte of weights and cache that is read")
    axes.set_ylabel(f"GFLOP/s; slope: {roof['read_gb_per_s']:.1f} GB/s read, {roof['threads']} threads")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    _add_legend(figure, cells)
    return figure


def _took_ms(cell: Record, stage: str) -> float | None:
    warm = cell["warm"]
    took: float | None = warm["token_ms"] if stage == "token" else warm["stages_ms"][stage]
    return took


def _add_legend(figure: Any, cells: list[tuple[int, Record]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        *(Line2D([], [], marker="o", linestyle="", color=STAGE_COLOURS[c], label=c) for _, c in _STAGES),
        *(
            Line2D(
                [],
                [],
                linestyle="",
                marker=row_style(index)["marker"],
                markerfacecolor="white",
                markeredgecolor=row_style(index)["color"],
                markeredgewidth=2,
                label=cell["name"],
            )
            for index, cell in cells
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize="small")
