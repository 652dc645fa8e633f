"""A comparison's picture: stages of every cell, distribution of its runs, speed with an interval."""

import textwrap
from typing import Any

import numpy as np

from .device_memory import LABELS
from .figures import STAGES, UNTOLD, Record, drawn_rows, times_of
from .palette import CONTROL_COLOUR, DEVICE_COLOUR, HOST_COLOUR, STAGE_COLOURS, row_style

_NOTHING: Record = {"stages_ms": {}}  # of a rival that keeps nothing for a second question
_TICKS = (1, 1.5, 2, 3, 5, 7)  # of a decade
_KINDS = (("warm", 1.0, "", ""), ("cached", 0.55, "//", " cached"))


def draw_report(record: Record) -> Any:
    """The figure of stages, distributions, speeds and memory."""
    from matplotlib.figure import Figure

    cells = drawn_rows(record)
    heights = (2.2 + 0.55 * len(cells), 2.6 + 0.28 * len(cells))
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    _draw_stages(parts[0].subplots(), cells)
    distribution, speeds, peaks = parts[1].subplots(1, 3, width_ratios=(1, 1, 0.7))
    _draw_distributions(distribution, cells)
    if distribution.lines:
        parts[1].legend(
            handles=distribution.lines, fontsize="small", ncols=4, loc="outside upper left", frameon=False
        )
    _draw_speeds(speeds, record)
    _draw_peaks(peaks, record)
    names = ", ".join(bundle["name"] for bundle in record["bundles"])
    request, cpu = record["request"], record["machine"]["cpu"]
    figure.suptitle(
        f"{names}: one picture, {request['num_tokens']} tokens, {cpu['model']}, {cpu['usable_cores']} cores",
        fontsize="large",
    )
    return figure


def _draw_stages(axes: Any, cells: list[Record]) -> None:
    """Two bars for each cell: nothing cached, and the second question about the same picture."""
    thickness = 0.38
    for index, (kind, strength, hatch, said) in enumerate(_KINDS):
        centres = np.arange(len(cells)) + (index - 0.5) * thickness * 1.05
        left = np.zeros(len(cells))
        for stage in (*STAGES[:-1], UNTOLD, STAGES[-1]):
            widths = [(cell[kind] or _NOTHING)["stages_ms"].get(stage) or 0 for cell in cells]
            if stage == UNTOLD and not any(widths):
                continue
            axes.barh(
                centres,
                widths,
                thickness,
                left=left,
                color=STAGE_COLOURS[stage],
                alpha=strength,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
                label=stage if index == 0 else None,
            )
            left += widths
        for cell, end, centre in zip(cells, left, centres, strict=True):
            if cell[kind] is None:
                continue
            axes.annotate(
                f" {cell[kind]['total_ms']:.1f}{said}", (end, centre), va="center", fontsize="small"
            )
    axes.set_yticks(range(len(cells)), [_label(cell["name"]) for cell in cells])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(
        "ms: medians of the stages, and of the whole at the end of a bar; "
        "hatched: a second question about the same picture"
    )
    axes.legend(ncols=len(STAGES), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    plain(axes)


def _draw_distributions(axes: Any, cells: list[Record]) -> None:
    """Share of the runs that took at most so long: no run is left out."""
    for index, cell in enumerate(cells):
        sessions = times_of(cell["sessions"], "total_ms")
        times = np.sort([time for blocks in sessions for block in blocks for time in block])
        if not len(times):  # a row of which no block was finished
            continue
        axes.step(
            [times[0], *times],
            np.arange(len(times) + 1) / len(times),
            where="post",
            color=(style := row_style(index))["color"],
            linestyle=style["linestyle"],
            label=_label(cell["name"]),
        )
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    plain_log_axis(axes.xaxis, (1, 2, 5) if most > 4 * least else _TICKS)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("end to end, ms")
    axes.set_ylabel("share of runs")
    axes.grid(alpha=0.25)
    plain(axes)


def _draw_speeds(axes: Any, record: Record) -> None:
    """Ratios with their intervals; the control is grey and belongs on 1."""
    ratios = [ratio for ratio in record["ratios"] if ratio["metric"] == "total_ms"]
    for row, ratio in enumerate(ratios):
        bounds = [[ratio["ratio"] - ratio["low"]], [ratio["high"] - ratio["ratio"]]]
        colour = CONTROL_COLOUR if ratio["cell"] == record["control"] else "black"
        axes.errorbar(ratio["ratio"], row, xerr=bounds, fmt="o", capsize=4, color=colour)
        axes.annotate(
            f"{ratio['ratio']:.2f}",
            (ratio["ratio"], row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize="small",
            color=colour,
        )
    axes.set_yticks(range(len(ratios)), [_label(ratio["cell"]) for ratio in ratios])
    axes.set_ylim(len(ratios) - 0.5, -0.7)
    axes.set_xscale("log")
    plain_log_axis(axes.xaxis)
    axes.axvline(1, linestyle=":", color="grey")
    claim = "" if record["control_passed"].get("total_ms") else ": THE CONTROL FAILED, NO CLAIM IS VALID"
    axes.set_xlabel(f"times faster than {record['baseline']}\n95 % interval{claim}")
    axes.margins(x=0.12)
    plain(axes)


def _draw_peaks(axes: Any, record: Record) -> None:
    """Peak memory of the host, and of the GPU below it where there is one."""
    cells, kind = drawn_rows(record), record.get("device_memory")
    bars = [("peak_memory_bytes", "host peak MB (VmHWM)", HOST_COLOUR)]
    if kind:
        bars.append(("device_peak_bytes", LABELS[kind], DEVICE_COLOUR))
    for index, (key, said, colour) in enumerate(bars):
        megabytes = [(cell.get(key) or 0) / 1e6 for cell in cells]
        centres = np.arange(len(cells)) + (index - (len(bars) - 1) / 2) * 0.38
        drawn = axes.barh(centres, megabytes, 0.36, color=colour, label=said)
        axes.bar_label(drawn, fmt=" {:.0f}", fontsize="small")
    axes.set_yticks(range(len(cells)), [_label(cell["name"]) for cell in cells])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    if kind:
        axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    else:
        axes.set_xlabel(bars[0][1])
    plain(axes)


def _label(name: str) -> str:
    """A cell's name in lines that leave room for the bars."""
    return textwrap.fill(name, 26, break_long_words=False, break_on_hyphens=False)


def plain_log_axis(axis: Any, ticks: tuple[float, ...] = _TICKS) -> None:
    """A few ticks in each decade, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain(axes: Any) -> None:
    """Without a frame."""
    axes.spines[["top", "right"]].set_visible(False)
