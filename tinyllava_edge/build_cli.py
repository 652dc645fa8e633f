"""The command `tinyllava-edge build`: engines from a bundle's vision graphs.

With `-o` the engines are written to a directory, with a table of what is in them; TensorRT-RTX needs no GPU
for that. They are not run, and say so. An engine never goes into a bundle: it is code, for one kind of GPU.
"""

import json as json_module
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from tinyllava_edge.bundle import PARITY_FOLDER, Bundle, Variant
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.embedded import bundle_path
from tinyllava_edge.errors import BundleError, UsageError
from tinyllava_edge.export.trt_engine import MIB, EngineOptions
from tinyllava_edge.export.trt_process import build_engine_apart
from tinyllava_edge.export.trt_table import SHORT, STATUS, engine_row, row_cells, table_lines
from tinyllava_edge.output import check_output, output_directory, write_json
from tinyllava_edge.tensorrt_binding import open_tensorrt

DEFAULT_VARIANT = "fp16"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One engine to build."""

    name: str  # of its file, without suffix
    onnx: Path
    variant: str
    options: EngineOptions
    islands: tuple[dict[str, Any], ...] = ()  # what the export kept in float32 on purpose


def build(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or 'nano'.")],
    target: Annotated[
        str, typer.Option(help="tensorrt (this machine's GPU) or tensorrt-rtx (GeForce RTX).")
    ] = "tensorrt",
    vision: Annotated[
        str | None, typer.Option(help="Vision variants, comma-separated; fp16 where the bundle has it.")
    ] = None,
    sm: Annotated[
        list[int] | None,
        typer.Option(help="Compute capability to build for, 86 for 8.6; again for more. tensorrt-rtx only."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures at once, at most.")] = 1,
    workspace: Annotated[
        int | None, typer.Option(min=1, help="MiB for the kernels; default: from the available memory.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for engines and table.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Build TensorRT engines from a bundle's vision graphs."""
    if output is None:
        raise UsageError("name a directory for the engines with -o.")
    options = EngineOptions(
        target=target,
        max_batch=max_batch,
        workspace_bytes=None if workspace is None else workspace * MIB,
        sms=tuple(dict.fromkeys(sm or ())),
    )
    root = bundle_path(bundle)
    if output.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{output} is inside the bundle, which never holds engines. Choose another place.")
    check_output(output, force=force)
    opened = Bundle.open(root)
    jobs = plan_jobs(opened, vision, options)
    report = write_engines(opened, jobs, output, force=force)
    if json:
        print_json(report)
        return
    table = Table(*SHORT, title=f"{output}: {STATUS}", title_justify="left")
    for row in report["engines"]:
        cells = row_cells(row)
        table.add_row(*(cells[heading] for heading in SHORT))
    stdout.print(table)
    for row in report["engines"]:
        note(f"{row['engine']}, the same by NVIDIA's own tool: {row['trtexec']}")


def plan_jobs(bundle: Bundle, vision: str | None, options: EngineOptions) -> list[Job]:
    """One engine a variant and compute capability.

    Raises:
        BundleError: the bundle has no such variant.
    """
    names = [variant.name for variant in bundle.manifest.variants if variant.part == "vision"]
    default = DEFAULT_VARIANT if DEFAULT_VARIANT in names else None
    asked = [default] if vision is None else [name.strip() for name in vision.split(",") if name.strip()]
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
    path = bundle.root / PARITY_FOLDER / "export.json"
    try:
        report = json_module.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}).") from None
    return tuple(report.get("vision", {}).get(variant.name, {}).get("islands", ()))


def _markdown(report: dict[str, Any]) -> str:
    head = [
        f"# Engines of {report['bundle']}",
        "",
        f"{report['target']} {report['tensorrt']}, {report['status']}: no engine here has computed anything.",
        "",
    ]
    return "\n".join([*head, *table_lines(report["engines"]), ""])
