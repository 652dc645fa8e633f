"""What visual tokens buy: accuracy against the time to the first token, a line for each model."""

from collections import defaultdict
from typing import Any

from tinyllava_edge.precisions import split_budget

from .figures import Record, shown_cells
from .palette import row_style
from .plot import plain, plain_log_axis
from .tables import several_budgets


def draw_budgets(record: Record) -> Any:
    """The figure, or None where no rows differ in their visual tokens, or none has an accuracy."""
    from matplotlib.figure import Figure

    cells = [cell for cell in shown_cells(record) if cell["quality"]]
    if not several_budgets(cells):
        return None
    lines: dict[str, list[Record]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: int(cell["tokens_per_picture"])):
        vision = split_budget(cell["vision"])[0] if cell["vision"] else "fp32"
        lines[f"{cell['model']} {cell['runtime']} {vision} + {cell['language'] or 'fp32'}"].append(cell)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (name, its) in enumerate(lines.items()):
        times = [cell["warm"]["first_token_ms"] for cell in its]
        scores = [cell["quality"]["accuracy"] for cell in its]
        ends = [cell["quality"]["ci95"] for cell in its]
        below, above = ([abs(s - end[side]) for s, end in zip(scores, ends, strict=True)] for side in (0, 1))
        style: Any = row_style(index)
        axes.errorbar(times, scores, yerr=[below, above], capsize=3, markersize=8, label=name, **style)
        for cell, time, score in zip(its, times, scores, strict=True):
            said = str(cell["tokens_per_picture"])
            axes.annotate(said, (time, score), xytext=(7, 7), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    plain_log_axis(axes.xaxis)
    axes.set_xlabel("first token (TTFT), ms; beside each point its visual tokens")
    axes.set_ylabel(f"accuracy on {record['questions']['file']}, 95 % interval")
    axes.grid(alpha=0.25)
    axes.margins(0.15)
    plain(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure
