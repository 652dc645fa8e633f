"""The picture to choose a variant by: accuracy against bytes, and against the time to the first token."""

from typing import Any

from .figures import Record, drawn_rows
from .palette import row_style
from .plot import plain, plain_log_axis


def draw_choice(record: Record) -> Any:
    """The figure, or None where no row has an accuracy, or an agreement with its source in its place."""
    from matplotlib.figure import Figure

    cells = drawn_rows(record)
    said, points = _qualities(record, cells)
    if not points:
        return None
    figure = Figure(figsize=(12, 4.5 + 0.2 * (len(points) // 4)), layout="constrained")
    for axes, (value, label) in zip(
        figure.subplots(1, 2, sharey=True),
        ((_megabytes, "weights on the device, MB"), (_first_token_ms, "first token (TTFT), ms")),
        strict=True,
    ):
        for index, cell, middle, low, high in points:
            style = row_style(index)
            axes.errorbar(
                value(cell),
                middle,
                yerr=[[middle - low], [high - middle]],
                fmt=style["marker"],
                color=style["color"],
                capsize=3,
                markersize=8,
                label=cell["name"],
            )
        axes.set_xscale("log")
        plain_log_axis(axes.xaxis)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.margins(0.12)
        plain(axes)
    figure.axes[0].set_ylabel(said)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize="small")
    return figure


def _megabytes(cell: Record) -> float:
    return float(cell["size_bytes"] / 1e6)


def _first_token_ms(cell: Record) -> float:
    return float(cell["warm"]["first_token_ms"])


def _qualities(
    record: Record, cells: list[Record]
) -> tuple[str, list[tuple[int, Record, float, float, float]]]:
    """What stands for quality; of each row that has it its place, itself, the figure, its interval."""
    if any(cell["quality"] for cell in cells):
        scored = [(i, c, c["quality"]) for i, c in enumerate(cells) if c["quality"]]
        return (
            f"accuracy on {record['questions']['file']}, 95 % interval",
            [(i, cell, q["accuracy"], *q["ci95"]) for i, cell, q in scored],
        )
    agreed = [(i, c, (c["parity"] or {}).get("top1_agreement")) for i, c in enumerate(cells)]
    return (
        "top-1 agreement with torch float32",
        [(i, cell, value, value, value) for i, cell, value in agreed if value is not None],
    )
