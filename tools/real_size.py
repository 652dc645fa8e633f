"""Exports of real sizes with random weights: time, peak memory and file sizes.

    python -m tools.real_size phi2-siglip --tokenizers DIR --work DIR -o result.json

Exports as the command `tinyllava-edge export` does, and prints one row for each model. Random weights say
nothing about accuracy; they cost the same time and memory as trained ones.
"""

import json
import os
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.table import Table

import tools
from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.benchmarks.bench.environment import machine_card
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note, stdout
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.model.checkpoint import tensor_facts

from .random_checkpoint import SHAPES, Shape, write_random_checkpoint

BASE_BYTES = 1_500_000_000  # of the bound: what any export may take beside weights
Record = dict[str, Any]


def measure_export(
    name: str, shape: Shape, tokenizers: Path, work: Path, *, vision: str, language: str
) -> Record:
    """Write a checkpoint, export it by the command in a process of its own, and delete both.

    Returns:
        seconds, files (bytes of each variant), peak_anonymous_bytes of each part, and bound_bytes.

    Raises:
        UsageError: the tokenizer's folder is not there.
        BackendError: the export failed.
    """
    with TemporaryDirectory(dir=work, prefix="real-size-") as folder:
        checkpoint, bundle = Path(folder, name), Path(folder, "bundle")
        note(f"{name}: random checkpoint")
        write_random_checkpoint(checkpoint, shape, tokenizers)
        note(f"{name}: export")
        command = [sys.executable, "-m", "tinyllava_edge", "export", str(checkpoint), "-o", str(bundle)]
        before, start = sum(os.times()[2:4]), time.perf_counter()
        result = subprocess.run(
            [*command, "--vision", vision, "--language", language, "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        if result.returncode:
            raise BackendError(f"{name}: export ended with code {result.returncode}; its message is above.")
        seconds = time.perf_counter() - start
        facts = json.loads(result.stdout)
        return {
            "name": name,
            "parameters": shape.parameters,
            "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.iterdir()),
            "seconds": seconds,
            "files": {f"{v['part']} {v['name']}": v["bytes"] for v in facts["variants"]},
            "peak_anonymous_bytes": facts["peak_anonymous_bytes"],
            "bound_bytes": bounds(Checkpoint(checkpoint)),
            "cpu_seconds": sum(os.times()[2:4]) - before,  # of all threads: what a busy machine changes less
        }


def bounds(checkpoint: Checkpoint) -> dict[str, int]:
    """What an export may take at most, by part; weights count as the float32 that they are computed in."""
    sizes = {name: 4 * prod(shape) for name, (shape, _) in tensor_facts(checkpoint).items()}
    largest = max(size for name, size in sizes.items() if name.startswith("language_model."))
    tower = sum(size for name, size in sizes.items() if name.startswith("vision_tower."))
    language = BASE_BYTES + 2 * largest
    return {"reference": language, "vision": BASE_BYTES + 2 * tower, "language": language}


def main(
    names: Annotated[list[str], typer.Argument(help=f"What to export: {', '.join(SHAPES)}.")],
    tokenizers: Annotated[Path, typer.Option(help="Folders of tokenizer files: phi-gpt2, qwen2, llama-spm.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    work: Annotated[Path, typer.Option(help="Where there is room: 8 bytes for each parameter.")] = Path(),
    vision: Annotated[str, typer.Option(help="As for export.")] = "fp32,fp16",
    language: Annotated[str, typer.Option(help="As for export.")] = "f16,q4_k_m",
) -> None:
    """Export models of real sizes with random weights: time, peak anonymous memory, file sizes."""
    if unknown := [name for name in names if name not in SHAPES]:
        raise UsageError(f"{unknown[0]!r} is not known. Known: {', '.join(SHAPES)}.")
    record: Record = {"machine": machine_card(), "exports": []}
    for name in names:
        export = measure_export(name, SHAPES[name], tokenizers, work, vision=vision, language=language)
        record["exports"].append(export)
        write_json(output, record)
    _print_table(record["exports"])


def _print_table(exports: list[Record]) -> None:
    table = Table("model", "parameters", "seconds", "CPU seconds")
    for part in ("reference", "vision", "language"):
        table.add_column(f"peak MB, {part} (bound)")
    table.add_column("file MB")
    for export in exports:
        peaks, limits = export["peak_anonymous_bytes"], export["bound_bytes"]
        table.add_row(
            export["name"],
            f"{export['parameters']:,}",
            f"{export['seconds']:.0f}",
            f"{export['cpu_seconds']:.0f}",
            *(f"{(peaks[part] or 0) / 1e6:,.0f} ({limits[part] / 1e6:,.0f})" for part in limits),
            "\n".join(f"{variant} {size / 1e6:,.0f}" for variant, size in export["files"].items()),
        )
    stdout.print(table)


if __name__ == "__main__":
    tools.run(main)
