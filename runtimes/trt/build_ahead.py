"""`tinyllava-edge build -o`: engines into a directory, with a table of what is in them. None of them is run.

TensorRT-RTX needs no GPU for that. An engine never goes into a bundle: it is code, for one kind of GPU.
The table is also that of docs/tensorrt.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from tinyllava_edge.atomic_files import foreign_file, output_directory, write_json
from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.console import note, stdout
from tinyllava_edge.errors import BundleError, UsageError
from tinyllava_edge.parity_files import read_parity

from .binding import open_tensorrt
from .budget import check_memory, least_engine_bytes
from .builder import OnProgress
from .options import EngineOptions
from .process import build_engine_apart, shown_progress

DEFAULT_VARIANT = "fp16"
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


def write_engines(
    bundle: Bundle, vision: str | None, options: EngineOptions, output: Path, *, force: bool = False
) -> dict[str, Any]:
    """Build an engine a variant and compute capability, each in a process of its own.

    Args:
        bundle: whose graphs they are of.
        vision: names of variants, comma-separated, or None for `DEFAULT_VARIANT` where the bundle has it.
        options: how.
        output: a directory that appears when all of them are there.
        force: replace an existing one.

    Returns:
        what `report.json` in the directory says.

    Raises:
        BundleError: the bundle has no such variant.
        DiskFullError: there is no room for the engines.
        UsageError: none is named.
        EngineBuildError, TensorRTError: as `build_engine_apart` does.
    """
    jobs = list(_jobs(bundle, vision, options))
    version = open_tensorrt(options.target).version_text  # not installed: said before anything is built
    needed = sum(least_engine_bytes(bundle, variant) for variant, _ in jobs)
    writing = output_directory(output, force=force, mark=engines_mark, needed=needed)
    with writing as folder, shown_progress() as on_progress:
        report: dict[str, Any] = {
            "kind": "engines",
            "status": STATUS,
            "target": options.target,
            "tensorrt": version,
            "bundle": str(bundle.root),
            "manifest_sha256": bundle.manifest_sha256,
            "engines": [_build(bundle, variant, single, folder, on_progress) for variant, single in jobs],
        }
        write_json(folder / "report.json", report)
        head = f"# Engines of {bundle.root}\n\n{options.target} {version}, {STATUS}"
        table = "\n".join(table_lines(report["engines"]))
        text = f"{head}: no engine here has computed anything.\n\n{table}\n"
        (folder / "report.md").write_text(text, encoding="utf-8")
    return report


def engines_mark(folder: Path) -> str:
    """Whether a directory is what `write_engines` made and nothing else: see `atomic_files.Mark`."""
    report = json.loads((folder / "report.json").read_bytes())
    if not isinstance(report, dict) or report.get("kind") != "engines":
        return "has the report of something else"
    known = {"report.json", "report.md", *(f"{row['engine']}.engine" for row in report["engines"])}
    return foreign_file(folder, known.__contains__)


def print_engines(report: dict[str, Any], output: Path) -> None:
    """The table for people, and NVIDIA's own command for each engine."""
    table = Table(*SHORT, title=f"{output}: {STATUS}", title_justify="left")
    for row in report["engines"]:
        cells = _row_cells(row)
        table.add_row(*(cells[heading] for heading in SHORT))
    stdout.print(table)
    for row in report["engines"]:
        note(f"{row['engine']}, the same by NVIDIA's own tool: {row['trtexec']}")


def engine_row(name: str, sm: int | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of the facts of one engine (`build_engine_apart`)."""
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
        cells = _row_cells(row)
        yield f"| {' | '.join(cells[heading] for heading in HEADINGS)} |"


def _jobs(
    bundle: Bundle, vision: str | None, options: EngineOptions
) -> Iterator[tuple[Variant, EngineOptions]]:
    names = [variant.name for variant in bundle.manifest.variants if variant.part == "vision"]
    default = DEFAULT_VARIANT if DEFAULT_VARIANT in names else None
    asked = [default] if vision is None else [name.strip() for name in vision.split(",") if name.strip()]
    if not asked:
        raise UsageError("--vision: name at least one variant to build.")
    for variant in [bundle.variant("vision", name) for name in asked]:
        if variant.target != "onnx":
            raise BundleError(f"{bundle.root}: vision variant {variant.name} is {variant.target}, not ONNX.")
        yield from ((variant, replace(options, sms=(sm,))) for sm in options.sms)
        if not options.sms:
            yield variant, options


def _build(
    bundle: Bundle, variant: Variant, options: EngineOptions, folder: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Build one engine, with the float32 islands that the export declared; returns its row."""
    sm = options.sms[0] if options.sms else None
    name = variant.name if sm is None else f"{variant.name}_sm{sm}"
    check_memory(bundle.variant_bytes(variant), shared=False, only_say=True)
    exported = (read_parity(bundle, "export") or {}).get("vision", {}).get(variant.name, {})
    facts = build_engine_apart(
        bundle.path(variant.files[0]),
        options,
        folder / f"{name}.engine",
        lambda phase, done, total: on_progress(f"{name}: {phase}", done, total),
        plan_rules=options.target == "tensorrt-rtx",
        islands=exported.get("islands", ()),
    )
    return {"variant": variant.name, **engine_row(name, sm, facts)}


def _row_cells(row: Mapping[str, Any]) -> dict[str, str]:
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
