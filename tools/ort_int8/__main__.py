"""A language model's products in ONNX Runtime's integers, outliers shifted into weights: KL and times.

    python -m tools.ort_int8 demo-out/smollm2-135m -o benchmarks/results/ort_int8    accuracy
    python -m tools.ort_int8 --speed -o benchmarks/results/ort_int8                  speed, on a calm machine

Each adds to what OUTPUT.json has of the other. Alpha is chosen on prompts, pictures and answers that are not
judged; judged are `verify`'s own, by the bound of the presets.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import tools
from tinyllava_edge.atomic_files import write_bytes, write_json
from tinyllava_edge.benchmarks.bench.environment import machine_card
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import stdout

from .accuracy import measure_accuracy
from .page import page
from .speed import SHAPES, measure_speed


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Files to write, without their ending.")],
    checkpoint: Annotated[str | None, typer.Argument(help="A Llama or Qwen2 with real weights.")] = None,
    speed: Annotated[bool, typer.Option(help="Measure times.")] = False,
    sessions: Annotated[int, typer.Option(help="Processes for each shape.")] = 4,
    blocks: Annotated[int, typer.Option(help="Of two runs of each way, in each process.")] = 12,
) -> None:
    """Measure what is asked for, and write the page of all that there is."""
    raw = output.with_suffix(".json")
    result: dict[str, Any] = json.loads(raw.read_text(encoding="utf-8")) if raw.exists() else {}
    if checkpoint is not None:
        path = checkpoint_path(checkpoint)
        rows = measure_accuracy(CheckpointReference(Checkpoint(path)))
        result["accuracy"] = {"machine": machine_card(), "checkpoint": path.name, "rows": rows}
    if speed:
        times = {shape: measure_speed(shape, sessions, blocks) for shape in SHAPES}
        result["speed"] = {"machine": machine_card(), "times_ms": times}
    write_json(raw, result)
    text = "\n".join(page(result))
    write_bytes(output.with_suffix(".md"), text.encode())
    stdout.print(text)


if __name__ == "__main__":
    tools.run(main)
