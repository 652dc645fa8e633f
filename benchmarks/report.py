"""A comparison's record as Markdown and as a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllava_edge.output import write_json

from .bench import STAGES

Record = dict[str, Any]


def write_report(folder: Path, record: Record) -> None:
    """Write report.json, report.md and report.png."""
    write_json(folder / "report.json", record)
    (folder / "report.md").write_text("\n".join(markdown_lines(record)) + "\n", encoding="utf-8")
    draw_report(folder / "report.png", record)


def markdown_lines(record: Record) -> Iterator[str]:
    """The table, with what it depends on below it."""
    request, machine = record["request"], record["machine"]
    yield f"# {record['bundle']['name']}: the same request on every variant"
    yield ""
    yield (
        f'One picture, "{request["question"]}", {request["num_tokens"]} greedy tokens, batch 1, nothing '
        "cached. Medians; ms unless said otherwise."
    )
    yield ""
    yield from table_lines(record)
    yield ""
    baseline = record["cells"][0]["name"]
    yield f"- *speed*: times faster end to end than {baseline}, with the 95 % interval of interleaved pairs."
    yield f"- *KL*, *top-1*: the next token's distribution against torch float32; {_parity_note(record)}"
    yield f"- {_control_line(record)}"
    if unsteady := [cell["name"] for cell in record["cells"] if not cell["same_answer_every_run"]]:
        yield f"- The answer was not the same in every run: {', '.join(unsteady)}."
    if unstable := [cell["name"] for cell in record["cells"] if cell["unstable"]]:
        yield f"- Unstable (runs deviate by more than a tenth from their median): {', '.join(unstable)}."
    cpu = machine["cpu"]
    yield f"- {cpu['model']}, {cpu['usable_cores']} cores usable, {machine['system']}; {_load_line(record)}"
    versions = {name: value for name, value in machine["versions"].items() if value}
    yield f"- {', '.join(f'{name} {value}' for name, value in versions.items())}"
    yield f"- manifest sha256 {record['bundle']['manifest_sha256']}, {machine['time_utc']}"


def table_lines(record: Record) -> Iterator[str]:
    """One row for each cell but the control."""
    yield (
        "| cell | MB | KL | top-1 | end to end | p90 | speed | first token | vision | prefill | per token "
        "| tokens/s | peak MB | load s |"
    )
    yield "|---" + "|---:" * 13 + "|"
    for cell in _shown(record):
        parity = cell["parity"] or {}
        columns = [
            cell["name"],
            f"{cell['size_bytes'] / 1e6:.1f}",
            _metric(parity, "mean_kld", ".1e"),
            _metric(parity, "top1_agreement", ".3f"),
            f"{cell['total_ms']:.1f} +- {cell['total_ms_deviation']:.1f}",
            "-" if cell["total_ms_p90"] is None else f"{cell['total_ms_p90']:.1f}",
            _speed(record, cell),
            f"{cell['first_token_ms']:.1f}",
            f"{cell['stages_ms']['vision']:.1f}",
            f"{cell['stages_ms']['prefill']:.1f}",
            f"{cell['next_token_ms']:.2f}",
            f"{cell['tokens_per_second']:.0f}",
            f"{cell['peak_memory_bytes'] / 1e6:.0f}",
            f"{cell['load_s']:.2f}",
        ]
        yield f"| {' | '.join(columns)} |"


def _shown(record: Record) -> list[Record]:
    return list(record["cells"][:-1])  # the last one is the control


def _metric(parity: dict[str, float], name: str, form: str) -> str:
    return format(parity[name], form) if name in parity else "-"


def _speed(record: Record, cell: Record) -> str:
    """The ratio, and the claim only where it may be made."""
    for ratio in record["ratios"]:
        if ratio["cell"] == cell["name"] and ratio["metric"] == "total_ms":
            verdict = ratio["verdict"] if record["control_passed"] else "no claim"
            return f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] {verdict}"
    return "1"


def _parity_note(record: Record) -> str:
    passed = record["parity_passed"]
    if passed is None:
        return "not measured (run `verify` first)."
    if missing := [c["name"] for c in _shown(record) if c["language"] and not c["parity"]]:
        return f"not measured for {', '.join(missing)} (run `verify` on all variants first)."
    return "`verify` passed." if passed else "`verify` FAILED on this bundle."


def _control_line(record: Record) -> str:
    control = record["cells"][-1]["name"]
    (ratio,) = [r for r in record["ratios"] if r["cell"] == control and r["metric"] == "total_ms"]
    interval = f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    if record["control_passed"]:
        return f"A/A control ({control}): {interval} includes 1."
    return f"A/A control ({control}): {interval} excludes 1 here or for the first token: NO CLAIM IS VALID."


def _load_line(record: Record) -> str:
    loads = [record["load"][when]["load_average_1_min"] for when in ("before", "after")]
    if None in loads:
        return "load unknown"
    return f"load average {loads[0]:.1f} before, {loads[1]:.1f} after"


def draw_report(path: Path, record: Record) -> None:
    """Stages of each cell, and its speed against the first one."""
    from matplotlib.figure import Figure

    cells = _shown(record)
    names = [cell["name"] for cell in cells]
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(cells)), layout="constrained")
    stages, speeds = figure.subplots(1, 2, width_ratios=(3, 2))
    left = [0.0] * len(cells)
    for stage in STAGES:
        widths = [cell["stages_ms"][stage] for cell in cells]
        stages.barh(names, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, cell in enumerate(cells):
        stages.annotate(f" {cell['total_ms']:.1f}", (left[row], row), va="center", fontsize="small")
    stages.margins(x=0.12)
    stages.set_xlabel("ms, median of each stage; their sum beside the end-to-end median")
    stages.legend(fontsize="small", ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    compared = [r for r in record["ratios"] if r["metric"] == "total_ms"]
    for row, ratio in enumerate(compared):
        bounds = [[ratio["ratio"] - ratio["low"]], [ratio["high"] - ratio["ratio"]]]
        speeds.errorbar(ratio["ratio"], row, xerr=bounds, fmt="o", capsize=3, color="black")
    speeds.set_yticks(range(len(compared)), [ratio["cell"] for ratio in compared])
    speeds.set_xscale("log")
    speeds.axvline(1, linestyle=":", color="grey")
    speeds.set_xlabel(f"times faster than {names[0]}, 95 % interval")
    for axes in (stages, speeds):
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)
