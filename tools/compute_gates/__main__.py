"""Measure every emulation on checkpoints, and write the table that the gates of compute classes stand on.

    python -m tools.compute_gates nano CHECKPOINT... [--sources DIR] -o benchmarks/results/compute_gates

Figures are those of `verify`: NMSE and the largest error of a logit over all positions of its prompts, KL
divergence and top-1 over the tokens behind them. Float types are held against torch float32 of the
checkpoint, quantized ones against torch float32 with the file's values (stage dequantized).
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import tools
from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.metrics import kl_divergence, max_abs_difference, nmse, top1_agreement

from .products import EMULATIONS, Emulation, Products, stored_values

COLUMNS = ("nmse", "max_abs", "mean_kld", "p99_kld", "top1_agreement")
Sample = dict[str, Any]


def measure(reference: CheckpointReference, emulation: Emulation) -> list[Sample]:
    """Figures of each prompt of `verify` with the continuation that the reference samples."""
    language: Any = reference.model.language_model
    exact = [(name, value.detach()) for name, value in language.named_parameters()]
    stored = stored_values(exact, emulation.stored)
    is_quantized = emulation.stored not in ("F32", "F16")
    samples = []
    for prompt in reference.prompts:
        ids = reference.continuation(prompt).ids
        table = language.get_input_embeddings().weight.detach()
        rows = torch.cat([torch.from_numpy(reference.splice(prompt)), table[list(ids[:-1])]])
        expected = reference.logits_with(stored if is_quantized else {}, rows)
        with Products(emulation) as products:
            found = reference.logits_with(stored, rows)
        assert products.replaced, "no product was replaced: another kind of attention or layer"
        divergence = kl_divergence(expected[-len(ids) :], found[-len(ids) :])
        samples.append(
            {
                "prompt": prompt.name,
                "positions": len(rows),
                "nmse": nmse(expected, found),
                "max_abs": max_abs_difference(expected, found),
                "top1_agreement": top1_agreement(expected[-len(ids) :], found[-len(ids) :]),
                "kld": [float(f"{value:.2g}") for value in divergence],
            }
        )
    return samples


def summary(samples: list[Sample]) -> dict[str, float]:
    """As `verify` has them: the worst prompt, but divergences of all tokens together."""
    divergence = np.concatenate([sample["kld"] for sample in samples])
    tokens = [len(sample["kld"]) for sample in samples]
    return {
        "nmse": max(sample["nmse"] for sample in samples),
        "max_abs": max(sample["max_abs"] for sample in samples),
        "mean_kld": float(divergence.mean()),
        "p99_kld": float(np.percentile(divergence, 99, method="higher")),
        "top1_agreement": float(np.average([sample["top1_agreement"] for sample in samples], weights=tokens)),
    }


def table_lines(results: dict[str, dict[str, list[Sample]]]) -> list[str]:
    """Markdown: one table for each emulation, one row for each checkpoint."""
    lines = [
        "# What a GPU's products cost, emulated",
        "",
        "Written by `python -m tools.compute_gates`; no GPU.",
        "",
    ]
    for emulation in EMULATIONS:
        lines += [
            f"## {emulation.name}",
            "",
            f"| checkpoint | {' | '.join(COLUMNS)} |",
            "|---" + "|---:" * 5 + "|",
        ]
        for name, measured in results.items():
            if emulation.name in measured:
                figures = summary(measured[emulation.name])
                cells = [
                    f"{figures[c]:.4g}" if c == "top1_agreement" else f"{figures[c]:.2g}" for c in COLUMNS
                ]
                lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def main(
    checkpoints: Annotated[list[str], typer.Argument(help="'nano', or directories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Files to write, without their ending.")],
    sources: Annotated[Path | None, typer.Option(help="Where files are that checkpoints only name.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of each continuation.")] = 128,
    steps: Annotated[bool, typer.Option(help="Sums of 4 too: hours for a large model.")] = True,
) -> None:
    """Emulate every way to compute on every checkpoint; adds to what OUTPUT.json has of others."""
    raw = output.with_suffix(".json")
    results: dict[str, dict[str, list[Sample]]] = json.loads(raw.read_text()) if raw.exists() else {}
    for given in checkpoints:
        path = checkpoint_path(given)
        name = path.parent.name if path.name in ("model", "checkpoint") else path.name
        reference = CheckpointReference(
            Checkpoint(path, sources=sources, allow_pickle=True), num_tokens=tokens
        )
        results[name] = {}
        for emulation in EMULATIONS:
            if not steps and emulation.name.endswith("sums of 4"):
                continue
            start = time.perf_counter()
            results[name][emulation.name] = measure(reference, emulation)
            seconds = time.perf_counter() - start
            note(f"{name}, {emulation.name}: {summary(results[name][emulation.name])}, {seconds:.0f} s")
            write_bytes(raw, json.dumps(results, separators=(",", ":")).encode())
        write_bytes(output.with_suffix(".md"), "\n".join(table_lines(results)).encode())


if __name__ == "__main__":
    tools.run(main)
