"""The table of built engines, in Markdown: for `build` and for docs/tensorrt.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

STATUS = "built, not run"
HEADINGS = (
    "engine",
    "SM",
    "build s",
    "peak memory MiB",
    "engine MiB",
    "fused attention",
    "fp32 GEMMs",
    "GEMMs",
    "weights MiB",
    "scratch MiB",
)
SHORT = ("engine", "build s", "engine MiB", "fused attention", "fp32 GEMMs", "scratch MiB")  # fits a terminal


def engine_row(name: str, sm: int | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of the facts of one engine (`trt_process.build_engine_apart`)."""
    kept = ("seconds", "peak_memory_bytes", "plan_bytes", "softmax_layers", "types", "inputs", "outputs")
    return {
        "engine": name,
        "sm": sm,
        "status": STATUS,
        **{key: facts[key] for key in kept},
        "batch": [facts["options"][f"{key}_batch"] for key in ("min", "opt", "max")],
        "workspace_bytes": facts["workspace_bytes"],
        "plan": facts.get("plan"),
        "trtexec": facts["trtexec"],
    }


def table_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown table of `engine_row` values."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{'---|' * len(HEADINGS)}"
    for row in rows:
        cells = row_cells(row)
        yield f"| {' | '.join(cells[heading] for heading in HEADINGS)} |"


def row_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """One row as text, by heading."""
    cells = dict.fromkeys(HEADINGS, "not read") | {
        "engine": row["engine"],
        "SM": "-" if row["sm"] is None else str(row["sm"]),
        "build s": f"{row['seconds']:.1f}",
        "peak memory MiB": _mib(row["peak_memory_bytes"]),
        "engine MiB": _mib(row["plan_bytes"]),
    }
    if plan := row["plan"]:
        cells |= {
            "fused attention": f"{plan['fused_attention']} of {row['softmax_layers']}",
            "fp32 GEMMs": str(plan["float32_gemms"]),
            "GEMMs": ", ".join(f"{count} {dtype}" for dtype, count in sorted(plan["gemms"].items())),
            "weights MiB": _mib(plan["weight_bytes"]),
            "scratch MiB": _mib(plan["scratch_bytes"]),
        }
    return cells


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f}"
