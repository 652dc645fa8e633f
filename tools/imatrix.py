"""What an importance matrix and types of single tensors gain a quantized language model.

    python -m tools.imatrix nano CHECKPOINT --data train.json --judge val.json -o benchmarks/results/imatrix

Importance is measured on prompts of --data, and judged on questions of --judge: torch with the values that
lie in each file against torch with the checkpoint's, at every position that predicts a token of an answer.
Goes on with what an earlier run left in OUTPUT.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import typer

import tools
from tinyllava_edge.atomic_files import write_bytes, write_json
from tinyllava_edge.benchmarks.evals.statistics import interval
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.stage_weights import dequantized_parameters
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.export.imatrix import (
    MAX_PROMPTS,
    PictureTurns,
    measure_imatrix,
    picture_embeddings,
    read_prompts,
)
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.export.quantize import quantize_gguf
from tinyllava_edge.export.recipes import resolve_types
from tinyllava_edge.metrics import kl_divergence
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.prompt import label_answers
from tinyllava_edge.train.data import splice_labels

TEXT, PICTURES, FEW, MANY = "text alone", "pictures", "pictures, a quarter", "pictures, four times"
_TIMES = {TEXT: 1.0, PICTURES: 1.0, FEW: 0.25, MANY: 4.0}
Floats = npt.NDArray[np.float32]


class Case(NamedTuple):
    """One file: its type, what its imatrix is measured on ("" without), rules of its tensors."""

    type: str
    imatrix: str = ""
    rules: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.type, *([f"imatrix of {self.imatrix}"] if self.imatrix else []), *self.rules])


_PINNED = ("ffn_down=q4_0",)  # with an imatrix llama.cpp gives an eighth of the layers q4_1
CASES = (
    Case("q4_0"),
    Case("q4_0", PICTURES),
    Case("q4_0", PICTURES, _PINNED),
    Case("q4_k_m"),
    Case("q4_k_m", PICTURES),
    Case("q4_0", "", ("attn_v=q8_0",)),
    Case("q4_0", "", ("ffn_down=q8_0",)),
    Case("q4_0", PICTURES, ("ffn_down=q8_0",)),
    Case("q4_0", TEXT),
    Case("q3_k_m"),
    Case("q3_k_m", PICTURES),
    Case("q2_k"),
    Case("q2_k", PICTURES),
    Case("iq3_s"),
    Case("iq3_s", PICTURES),
    Case("q4_k_m", TEXT),
    Case("q4_0", FEW),
    Case("q4_0", MANY),
)


class Question(NamedTuple):
    """What a language model gets, which of its logits count, and what the float model says there."""

    picture: str
    rows: torch.Tensor  # [positions, hidden]
    places: list[int]
    logits: Floats  # [places, vocab]


class Measured:
    """One checkpoint: its float file, importances, questions."""

    def __init__(self, path: Path, data: Path, judge: Path, questions: int, folder: Path) -> None:
        checkpoint = Checkpoint(path)
        self.reference = CheckpointReference(checkpoint)
        self.source = LanguageSource(checkpoint=checkpoint, assets=read_assets(checkpoint), name=path.name)
        self.folder, self._data, self._imatrices = folder, data, dict[str, Any]()
        write_language_gguf(folder / "f32.gguf", self.source, "f32")
        template = self.source.assets.template
        self.questions = [self._question(turns) for turns in read_prompts(judge, None, template, questions)]

    @torch.no_grad()
    def _question(self, asked: PictureTurns) -> Question:
        assets, model = self.source.assets, self.reference.model
        ids, labels = label_answers(assets.text_tokenizer(), assets.template, asked.turns)
        pictures = picture_embeddings(model, asked.pictures, assets.preprocessing)
        rows, labels = model.splice(ids, pictures), splice_labels(ids, labels, pictures.shape[1])
        places = [place - 1 for place, label in enumerate(labels) if label >= 0]
        name = "/".join(asked.pictures[0].parts[-2:])  # wherever the data are
        return Question(name, rows, places, self._logits({}, rows)[places])

    def _logits(self, parameters: dict[str, torch.Tensor], rows: torch.Tensor) -> Floats:
        return self.reference.logits_with(parameters, rows)

    def imatrix(self, kind: str) -> Any:
        """Measured once; None for ""."""
        if kind and kind not in self._imatrices:
            most = round(MAX_PROMPTS * _TIMES[kind])
            prompts = read_prompts(self._data, None, self.source.assets.template, most)
            if kind == TEXT:
                prompts = [_without_pictures(prompt) for prompt in prompts]
            self._imatrices[kind] = measure_imatrix(self.reference.model, self.source, prompts)
        return self._imatrices.get(kind)

    def figures(self, case: Case) -> dict[str, Any]:
        """A file of a case: its bytes, and how far what it says is from the float model."""
        path, measured = self.folder / "case.gguf", self.imatrix(case.imatrix)
        names = [rule.name for rule in self.source.rules().values() if len(rule.shape) > 1]
        quantize_gguf(
            self.folder / "f32.gguf",
            path,
            case.type,
            imatrix=measured and measured.mean_squares,
            types=resolve_types(case.rules, names),
        )
        parameters = dequantized_parameters(self.reference, path)
        divergence, same = [], []
        for question in self.questions:
            found = self._logits(parameters, question.rows)[question.places]
            divergence.append(kl_divergence(question.logits, found))
            same.append(question.logits.argmax(axis=-1) == found.argmax(axis=-1))
        every = np.concatenate(divergence)
        share = len(self.questions) / len(every)  # so that the mean of questions is that of positions
        return {
            "bytes": path.stat().st_size,
            "prompts": measured and [measured.prompts, measured.positions],
            "mean_kld": float(every.mean()),
            "p99_kld": float(np.percentile(every, 99, method="higher")),
            "top1_agreement": float(np.concatenate(same).mean()),
            "question_kld": [float(f"{share * one.sum():.4g}") for one in divergence],
        }


def _without_pictures(prompt: PictureTurns) -> PictureTurns:
    turns = [(question.replace(f"{IMAGE_MARKER}\n", ""), answer) for question, answer in prompt.turns]
    return PictureTurns(turns=turns, pictures=())


def main(
    checkpoints: Annotated[list[str], typer.Argument(help="'nano', or directories.")],
    data: Annotated[Path, typer.Option(help="LLaVA JSON to measure importance on, pictures beside it.")],
    judge: Annotated[Path, typer.Option(help="Of other pictures, to judge the files on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Files to write, without their ending.")],
    questions: Annotated[int, typer.Option(help="Of --judge, spread over it.")] = 64,
) -> None:
    """Quantize in every way, and compare each with the float model."""
    raw = output.with_suffix(".json")
    results: dict[str, Any] = json.loads(raw.read_text()) if raw.exists() else {}
    for given in checkpoints:
        path = checkpoint_path(given)
        name = given if given == "nano" else path.name
        with tempfile.TemporaryDirectory() as folder:
            measured = Measured(path, data, judge, questions, Path(folder))
            asked = {
                "pictures": [question.picture for question in measured.questions],
                "positions": sum(len(question.places) for question in measured.questions),
            }
            facts = results.get(name, {})
            if {**facts, **asked} != facts:  # other questions: rows of both would not compare
                facts = results[name] = {**asked, "rows": {}}
            for case in CASES:
                if str(case) not in facts["rows"]:
                    facts["rows"][str(case)] = measured.figures(case)
                    shown = {k: v for k, v in facts["rows"][str(case)].items() if k != "question_kld"}
                    note(f"{name}, {case}: {shown}")
                    write_json(raw, results)
                    write_bytes(output.with_suffix(".md"), "\n".join(page(results)).encode())


def page(results: dict[str, Any]) -> list[str]:
    """Markdown of the results."""
    lines = ["# An importance matrix of picture prompts, and types of single tensors", ""]
    lines += [
        "Written by `python -m tools.imatrix`: KL divergence in nats from the float model at the positions "
        "that predict answers, torch with each file's values. `change` is that of the mean from the type's "
        "alone, with its 95 % interval over pictures. Importance is of other pictures than the questions.",
        "",
    ]
    for name, facts in results.items():
        lines += [
            f"## {name}",
            "",
            f"{len(facts['pictures'])} questions, {facts['positions']} positions.",
            "",
            "| | bytes | mean KL | change | p99 KL | same top token |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for case, row in facts["rows"].items():
            base = facts["rows"][case.split(", ")[0]]
            change = np.subtract(row["question_kld"], base["question_kld"])
            low, high = interval(change, facts["pictures"], least=-1.0)
            mean, low, high = (100 * value / base["mean_kld"] for value in (change.mean(), low, high))
            lines.append(
                f"| {case} | {row['bytes']:,} | {row['mean_kld']:.2e} "
                f"| {'' if row is base else f'{mean:+.0f} % [{low:+.0f}, {high:+.0f}]'} "
                f"| {row['p99_kld']:.2e} "
                f"| {row['top1_agreement']:.4f} |"
            )
        lines.append("")
    return lines


if __name__ == "__main__":
    tools.run(main)
