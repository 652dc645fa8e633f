"""What quantization-aware training saves nano: its q4_0 against that of the same training without.

    python -m tools.qat --data train.json --images DIR --work DIR -o benchmarks/results/qat

A tenth of the pictures is held out of the training. The reference is nano, trained on the rest in float; its
own q4_0 is what training after the fact gives. Two more runs of the same steps, seed and data: as the
reference but quantization-aware, and quantization-aware from the reference with --distill, of which the steps
without quantization change nothing (its loss is 0). Logits are torch's, with the values that lie in the
exported files, at every position that predicts a token of an answer. Goes on with what an earlier one left in
--work.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import typer

import tools
from tinyllava_edge.atomic_files import write_bytes, write_json
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.stage_weights import dequantized_parameters
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.metrics import kl_divergence, log_softmax, top1_agreement
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.train.batches import FAULTS
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.run_records import Numbered
from tinyllava_edge.train.samples import open_samples
from tinyllava_edge.train.training_options import TrainingOptions

BATCH = 32
HELD_OUT = 10  # of so many pictures one


class Said(NamedTuple):
    """What a model says at the positions of all held-out answers.

    Attributes:
        logits: [positions, vocab].
        targets: [positions], the answers' own tokens.
        questions: [positions], which question each is of.
    """

    logits: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    questions: npt.NDArray[np.int64]


def split(data: Path, folder: Path) -> tuple[Path, Path]:
    """Write the records to train on, and those of a tenth of the pictures, which are held out."""
    records = json.loads(data.read_text(encoding="utf-8"))
    pictures = sorted({record["image"] for record in records if "image" in record})
    random.Random(0).shuffle(pictures)
    held = set(pictures[: len(pictures) // HELD_OUT])
    paths = folder / "train.json", folder / "held_out.json"
    for path, is_held in zip(paths, (False, True), strict=True):
        write_json(path, [record for record in records if (record.get("image") in held) == is_held])
    return paths


@torch.no_grad()
def say(model: TinyLlava, checkpoint: Checkpoint, options: FinetuneOptions) -> Said:
    """Ask a model about all records of `options.data`."""
    data, samples = read_data(options), open_samples(checkpoint, options)
    samples.conversations = Numbered(data, range(len(data)), samples.left_out)
    asked, parts = TinyLlavaForTraining(model).eval(), []
    for start in range(0, len(samples), BATCH):
        batch = samples.collator(samples.__getitems__(list(range(start, min(start + BATCH, len(samples))))))
        batch.pop(FAULTS)
        labels, learned = batch.pop("labels"), batch["learned"]
        targets = labels.flatten()[learned + 1]
        parts.append((asked.learned_logits(**batch), targets, start + learned // labels.shape[1]))
    return Said(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def figures(expected: Said, found: Said) -> dict[str, float]:
    """Of the held-out answers: distance from the reference, loss, and how many are wholly right."""
    divergence = kl_divergence(expected.logits, found.logits)
    wrong = set(found.questions[found.logits.argmax(axis=-1) != found.targets].tolist())
    own = log_softmax(found.logits)[np.arange(len(found.targets)), found.targets]
    return {
        "mean_kld": float(divergence.mean()),
        "p99_kld": float(np.percentile(divergence, 99, method="higher")),
        "top1_agreement": top1_agreement(expected.logits, found.logits),
        "loss": float(-own.mean()),
        "right": len(set(found.questions.tolist()) - wrong),
    }


def exported(path: Path, grid: bool) -> TinyLlava:
    """A checkpoint as its float weights, or with those of its language model as they lie in its q4_0 file."""
    reference = CheckpointReference(Checkpoint(path))
    if grid:
        bundle = path.with_name(f"{path.name}-bundle")
        export_bundle(
            Checkpoint(path), bundle, ExportOptions(vision=("fp32",), language=("q4_0",), force=True)
        )
        with torch.no_grad():
            for name, values in dequantized_parameters(reference, bundle / "language" / "q4_0.gguf").items():
                reference.model.language_model.get_parameter(name).copy_(values)
    return reference.model


def main(
    data: Annotated[Path, typer.Option(help="LLaVA JSON, of which a tenth of the pictures is held out.")],
    images: Annotated[Path, typer.Option(help="Folder of its pictures.")],
    work: Annotated[Path, typer.Option(help="Folder of the checkpoints, kept.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Files to write, without their ending.")],
    steps: Annotated[int, typer.Option(help="Of every run.")] = 150,
    learning_rate: Annotated[float, typer.Option(help="Of those without --distill.")] = 2e-5,
    distill_rate: Annotated[float, typer.Option(help="Of the run with it.")] = 1e-5,
    distill_batch: Annotated[int, typer.Option(help="Its conversations a step.")] = 16,
) -> None:
    """Train nano thrice, export, and compare."""
    work.mkdir(parents=True, exist_ok=True)
    train, held = split(data, work)
    plain = FinetuneOptions(
        data=train,
        images=images,
        source=checkpoint_path("nano"),
        training=TrainingOptions(
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=learning_rate,
            precision="fp32",
            save_steps=25,
        ),
    )
    on_grid = replace(plain.training, quantize_aware=("q4_0",))
    distilled = replace(
        on_grid, distill=True, learning_rate=distill_rate, per_device_train_batch_size=distill_batch
    )
    runs = {
        "float": plain,
        "aware": replace(plain, training=on_grid),
        "distilled": replace(plain, source=work / "float", training=distilled),
    }
    rows: dict[str, dict[str, Any]] = {}
    expected: Said | None = None
    for name, options in runs.items():
        finetune(work / name, options, resume=True)
        for grid in (False, True) if name == "float" else (True,):
            model = exported(work / name, grid)
            found = say(model, Checkpoint(work / name), replace(options, data=held))
            expected = expected or found
            rows[f"{name}, q4_0" if grid else name] = figures(expected, found)
            note(f"{[*rows][-1]}: {rows[[*rows][-1]]}")
    assert expected is not None
    result = {
        "steps": steps,
        "learning_rate": learning_rate,
        "distill_rate": distill_rate,
        "distill_batch": distill_batch,
        "seed": plain.training.seed,
        "questions": int(expected.questions.max()) + 1,
        "positions": len(expected.targets),
        "rows": rows,
    }
    write_json(output.with_suffix(".json"), result)
    write_bytes(output.with_suffix(".md"), "\n".join(page(result)).encode())


def page(result: dict[str, Any]) -> list[str]:
    """Markdown of the result."""
    base = result["rows"]["float, q4_0"]["mean_kld"]
    lines = [
        "# Quantization-aware training of nano",
        "",
        f"Written by `python -m tools.qat`: {result['steps']} steps each, seed {result['seed']}; "
        f"{result['questions']} held-out questions, {result['positions']} tokens of answers. `float` is nano "
        f"trained without fake quantization (batch 16, {result['learning_rate']:g}), the reference of every "
        "row; `aware` is the same run with `--quantize-aware q4_0`; `distilled` goes on from `float` with "
        f"`--quantize-aware q4_0 --distill` (batch {result['distill_batch']}, {result['distill_rate']:g}).",
        "",
        "| | mean KL, nats | of `float, q4_0` | p99 KL | same top token | loss | answers right |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        lines.append(
            f"| {name} | {row['mean_kld']:.2e} | {row['mean_kld'] / base:.2f} | {row['p99_kld']:.2e} "
            f"| {row['top1_agreement']:.4f} | {row['loss']:.4f} | {row['right']} of {result['questions']} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    tools.run(main)
