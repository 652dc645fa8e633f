"""The public question sets of `eval --benchmark`, in the folders of TinyLLaVA's own scripts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.errors import DataError, UsageError

from .question import Question, Record
from .questions import read_records

MAX_TOKENS = 128  # upstream's
POPE_SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """Where the files of a public set are, and the rule that scores it.

    Attributes:
        questions: that upstream asks.
        images: folder that their pictures are relative to.
        references: files with the answers, in the set's folder; none where the questions have them, or
            nobody but a server knows them.
        rule: see `rules`.
    """

    questions: str
    images: str
    rule: str
    references: Callable[[Path], Sequence[Path]] = lambda folder: ()


def _mme_texts(folder: Path) -> list[Path]:
    texts = sorted((folder / "MME_Benchmark_release_version").rglob("*.txt"))
    if not texts:
        raise DataError(f"{folder / 'MME_Benchmark_release_version'}: no text files with MME's answers.")
    return texts


def _gqa_answers(folder: Path) -> list[Path]:
    places = [folder / place / "testdev_balanced_questions.json" for place in (".", "data", "questions1.2")]
    return [next((path for path in places if path.is_file()), places[0])]


PUBLIC_SETS = {
    "pope": PublicSet(
        questions="llava_pope_test.jsonl",
        images="val2014",
        rule="pope",
        references=lambda folder: [folder / "coco" / f"coco_pope_{split}.json" for split in POPE_SPLITS],
    ),
    "textvqa": PublicSet(
        questions="llava_textvqa_val_v051_ocr.jsonl",
        images="train_images",
        rule="textvqa",
        references=lambda folder: [folder / "TextVQA_0.5.1_val.json"],
    ),
    "scienceqa": PublicSet(questions="llava_test_CQM-A.json", images="images/test", rule="scienceqa"),
    "gqa": PublicSet(
        questions="llava_gqa_testdev_balanced.jsonl", images="images", rule="gqa", references=_gqa_answers
    ),
    "vqav2": PublicSet(questions="llava_vqav2_mscoco_test-dev2015.jsonl", images="test2015", rule="vqav2"),
    "mme": PublicSet(
        questions="llava_mme.jsonl",
        images="MME_Benchmark_release_version",
        rule="mme",
        references=_mme_texts,
    ),
    "mmbench": PublicSet(questions="mmbench_dev_20230712.tsv", images=".", rule="mmbench"),
}


def read_public_set(name: str, folder: Path, limit: int) -> tuple[Path, list[Record], int]:
    """Read a set in the files of TinyLLaVA's own scripts.

    Args:
        name: one of `PUBLIC_SETS`.
        folder: with its files and pictures.
        limit: pictures that are asked about; 0 takes all.

    Returns:
        The file of questions, its records, and how many questions the whole set has.

    Raises:
        DataError: a file is missing or of another form.
        UsageError: there is no such set.
    """
    if name not in PUBLIC_SETS:
        raise UsageError(f"--benchmark {name!r} is not known. Known: {', '.join(PUBLIC_SETS)}.")
    its = PUBLIC_SETS[name]
    file = folder / its.questions
    records = read_records(file, folder / its.images, references=its.references(folder), rule=its.rule)
    asked = [question for record in records if isinstance(record, tuple) for question in record]
    kept = {asked[position].record for position in sampled(asked, limit)}
    chosen = [r if isinstance(r, DataError) or r[0].record in kept else () for r in records]  # in its place
    return file, chosen, len(asked)


def sampled(questions: Sequence[Question], limit: int) -> list[int]:
    """Positions of all questions about `limit` pictures, the same ones each time; of all for 0."""
    pictures = sorted({question.picture_key for question in questions})
    if 0 < limit < len(pictures):
        pictures = random.Random(0).sample(pictures, limit)
    kept = set(pictures)
    return [index for index, question in enumerate(questions) if question.picture_key in kept]
