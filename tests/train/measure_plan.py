"""What `train --plan` says of a small run, and the peak that the run has: one case, in a process of its own.

python -m tests.train.measure_plan full
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.memory import anonymous_bytes, return_freed_memory, return_large_blocks, watched_memory
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.options import FinetuneOptions, LoraOptions, parse_tune
from tinyllava_edge.train.plan import make_plan
from tinyllava_edge.train.training_options import TrainingOptions
from tinyllava_edge.work_places import temporary_place

POSITIONS = 400
SMALL = {
    "hidden": 512,
    "intermediate": 1536,
    "layers": 6,
    "heads": 8,
    "kv_heads": 8,
    "image_size": 112,
    "vision_hidden": 256,
    "vision_layers": 4,
    "vision_intermediate": 1024,
}
CLIP = {**SMALL, "tower": "clip_vision_model", "hidden": 384, "intermediate": 1024, "vision_layers": 8}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "full": (SMALL, "connector+llm", {"per_device_train_batch_size": 4}),
    "checkpointing": (
        SMALL,
        "connector+llm",
        {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    ),
    "accumulation": (
        SMALL,
        "connector+llm",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ),
    "connector": (SMALL, "connector", {"per_device_train_batch_size": 4}),
    "lora": (SMALL, "connector+llm=lora", {"per_device_train_batch_size": 2}),
    "tower": (CLIP, "all", {"per_device_train_batch_size": 4}),
}


def write_run(folder: Path, sizes: dict[str, Any], tune: str, training: dict[str, Any]) -> FinetuneOptions:
    """A checkpoint, and eight conversations that are longer than its positions."""
    source = write_tiny_checkpoint(folder / "source", **sizes)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "tokenizer_model_max_length": POSITIONS}))
    Image.new("RGB", (30, 30)).save(folder / "p.png")
    turns = [{"from": "human", "value": "<image>\nGo"}, {"from": "gpt", "value": "x y " * 1000}]
    records = [{"id": str(index), "image": "p.png", "conversations": turns} for index in range(8)]
    (folder / "data.json").write_text(json.dumps(records))
    return FinetuneOptions(
        data=folder / "data.json",
        images=folder,
        source=source,
        tune=parse_tune(tune),
        training=TrainingOptions(precision="fp32", save_steps=0, **training),
        lora=LoraOptions(rank=8, alpha=8),
    )


def measure(case: str) -> tuple[int, int]:
    """Bytes that the plan says, and those that the run took at most."""
    sizes, tune, training = CASES[case]
    return_large_blocks()
    with temporary_place() as folder:  # what is imported and kept by any run
        finetune(folder / "out", write_run(folder, {}, "connector", {"per_device_train_batch_size": 2}))
    with temporary_place() as folder:
        options = write_run(folder, sizes, tune, training)
        plan = make_plan(Checkpoint(options.source).config, options, rows=8, positions=POSITIONS)
        return_freed_memory()
        before = anonymous_bytes(os.getpid()) or 0
        with watched_memory() as watch:
            watch.peak_bytes()
            finetune(folder / "out", options)
            peak = watch.peak_bytes() or 0
    return int(plan.memory_bytes["total"]), peak - before


if __name__ == "__main__":
    torch.set_num_threads(2)
    planned, measured = measure(sys.argv[1])
    sys.stdout.write(json.dumps({"planned": planned, "measured": measured}) + "\n")
