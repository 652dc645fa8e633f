"""`tinyllava-edge build -o`: engines into a directory, with a table of what is in them. None of them is run.

TensorRT-RTX needs no GPU for that. An engine never goes into a bundle: it is code, for one kind of GPU.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.console import note, progress, stdout
from tinyllava_edge.errors import BundleError, UsageError
from tinyllava_edge.parity_files import read_parity

from .binding import open_tensorrt
from .options import EngineOptions
from .process import build_engine_apart
from .table import SHORT, STATUS, engine_row, row_cells, table_lines

DEFAULT_VARIANT = "fp16"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One engine to build."""

    name: str  # of its file, without suffix
    onnx: Path
    variant: str
    options: EngineOptions
    islands: tuple[dict[str, Any], ...] = ()  # what the export kept in float32 on purpose


def plan_jobs(bundle: Bundle, vision: str | None, options: EngineOptions) -> list[Job]:
    """One engine a variant and compute capability.

    Raises:
        BundleError: the bundle has no such variant.
        UsageError: none is named.
    """
    names = [variant.name for variant in bundle.manifest.variants if variant.part == "vision"]
    default = DEFAULT_VARIANT if DEFAULT_VARIANT in names else None
    asked = [default] if vision is None else [name.strip() for name in vision.split(",") if name.strip()]
    if not asked:
        raise UsageError("--vision: name at least one variant to build.")
    jobs = []
    for variant in (bundle.variant("vision", name) for name in asked):
        path = _onnx_path(bundle, variant)
        islands = _islands(bundle, variant)
        for sm in options.sms or (None,):
            single = options if sm is None else replace(options, sms=(sm,))
            name = variant.name if sm is None else f"{variant.name}_sm{sm}"
            jobs.append(Job(name=name, onnx=path, variant=variant.name, options=single, islands=islands))
    return jobs


def write_engines(bundle: Bundle, jobs: list[Job], output: Path, *, force: bool = False) -> dict[str, Any]:
    """Build every engine in a process of its own; the directory appears when all of them are there.

    Returns:
        what `report.json` in the directory says.

    Raises:
        as `build_engine_apart` does.
    """
    target = jobs[0].options.target
    version = open_tensorrt(target).version_text  # not installed: said before anything is built
    rows = []
    with output_directory(output, force=force) as folder, progress() as bar:
        for job in jobs:
            facts = _build(job, folder, bar)
            rows.append({"variant": job.variant, **engine_row(job.name, _sm(job), facts)})
        report = {
            "kind": "engines",
            "status": STATUS,
            "target": target,
            "tensorrt": version,
            "bundle": str(bundle.root),
            "manifest_sha256": bundle.manifest_sha256,
            "engines": rows,
        }
        write_json(folder / "report.json", report)
        (folder / "report.md").write_text(_markdown(report), encoding="utf-8")
    return report


def print_engines(report: dict[str, Any], output: Path) -> None:
    """The table for people, and NVIDIA's own command for each engine."""
    table = Table(*SHORT, title=f"{output}: {STATUS}", title_justify="left")
    for row in report["engines"]:
        cells = row_cells(row)
        table.add_row(*(cells[heading] for heading in SHORT))
    stdout.print(table)
    for row in report["engines"]:
        note(f"{row['engine']}, the same by NVIDIA's own tool: {row['trtexec']}")


def _build(job: Job, folder: Path, bar: Progress) -> dict[str, Any]:
    task = bar.add_task(job.name)

    def on_progress(phase: str, done: int, total: int) -> None:
        bar.update(task, description=f"{job.name}: {phase}", completed=done, total=total)

    facts = build_engine_apart(
        job.onnx,
        job.options,
        folder / f"{job.name}.engine",
        on_progress,
        plan_rules=job.options.target == "tensorrt-rtx",
        islands=job.islands,
    )
    bar.remove_task(task)
    return facts


def _sm(job: Job) -> int | None:
    return job.options.sms[0] if job.options.sms else None


def _onnx_path(bundle: Bundle, variant: Variant) -> Path:
    if variant.target != "onnx":
        raise BundleError(f"{bundle.root}: vision variant {variant.name} is {variant.target}, not ONNX.")
    return bundle.path(variant.files[0])


def _islands(bundle: Bundle, variant: Variant) -> tuple[dict[str, Any], ...]:
    """Operations that the export kept in float32 in a narrower graph, as its report says."""
    report = read_parity(bundle, "export") or {}
    return tuple(report.get("vision", {}).get(variant.name, {}).get("islands", ()))


def _markdown(report: dict[str, Any]) -> str:
    head = [
        f"# Engines of {report['bundle']}",
        "",
        f"{report['target']} {report['tensorrt']}, {report['status']}: no engine here has computed anything.",
        "",
    ]
    return "\n".join([*head, *table_lines(report["engines"]), ""])
