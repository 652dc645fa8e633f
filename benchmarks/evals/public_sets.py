"""The public question sets of `eval --benchmark`, in the folders of TinyLLaVA's own scripts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.errors import DataError, UsageError

from .question import Question, Record
from .questions import read_records

MAX_TOKENS, MANY_TOKENS = 128, 1024  # upstream's, of short answers and of others
POPE_SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """Where the files of a public set are, and the rule that scores it.

    Attributes:
        questions: that upstream asks.
        images: folder that their pictures are relative to.
        references: files with the answers, in the set's folder; none where the questions have them, or
            nobody but a server knows them.
        rule: see `rules`; "" where only a judge scores.
        num_questions: that upstream's files have (docs/sources/measuring.md#question-files); 0: not known.
        max_tokens: of an answer, as upstream asks.
        judge: who scores what nothing here can.
    """

    questions: str
    images: str
    rule: str = ""
    references: Callable[[Path], Sequence[Path]] = lambda folder: ()
    num_questions: int = 0
    max_tokens: int = MAX_TOKENS
    judge: str = ""


def _mme_texts(folder: Path) -> list[Path]:
    texts = sorted((folder / "MME_Benchmark_release_version").rglob("*.txt"))
    if not texts:
        raise DataError(f"{folder / 'MME_Benchmark_release_version'}: no text files with MME's answers.")
    return texts


def _first_of(*places: str) -> Callable[[Path], list[Path]]:
    """The first of several places where a file may be; the first of all where it is in none."""

    def find(folder: Path) -> list[Path]:
        paths = [folder / place for place in places]
        return [next((path for path in paths if path.is_file()), paths[0])]

    return find


PUBLIC_SETS = {
    "pope": PublicSet(
        questions="llava_pope_test.jsonl",
        images="val2014",
        rule="pope",
        references=lambda folder: [folder / "coco" / f"coco_pope_{split}.json" for split in POPE_SPLITS],
        num_questions=8_910,
    ),
    "textvqa": PublicSet(
        questions="llava_textvqa_val_v051_ocr.jsonl",
        images="train_images",
        rule="textvqa",
        references=lambda folder: [folder / "TextVQA_0.5.1_val.json"],
        num_questions=5_000,
    ),
    "scienceqa": PublicSet(
        questions="llava_test_CQM-A.json",
        images="images/test",
        rule="scienceqa",
        references=lambda folder: [path for path in [folder / "problems.json"] if path.is_file()],
        num_questions=4_241,
        max_tokens=MANY_TOKENS,
    ),
    "gqa": PublicSet(
        questions="llava_gqa_testdev_balanced.jsonl",
        images="images",
        rule="gqa",
        references=_first_of(
            *(f"{place}testdev_balanced_questions.json" for place in ("", "data/", "questions1.2/"))
        ),
        num_questions=12_578,
    ),
    "vqav2": PublicSet(
        questions="llava_vqav2_mscoco_test-dev2015.jsonl",
        images="test2015",
        rule="vqav2",
        num_questions=107_394,
        judge="the challenge's server, which alone has the answers",
    ),
    "mme": PublicSet(
        questions="llava_mme.jsonl",
        images="MME_Benchmark_release_version",
        rule="mme",
        references=_mme_texts,
        num_questions=2_374,
    ),
    "mmbench": PublicSet(questions="mmbench_dev_20230712.tsv", images=".", rule="mmbench"),
    "mmmu": PublicSet(
        questions="anns_for_eval.json",
        images="all_images",
        rule="mmmu",
        references=_first_of("answer_dict_val.json", "eval/answer_dict_val.json"),
        num_questions=900,
        max_tokens=MANY_TOKENS,
    ),
    "mmvet": PublicSet(
        questions="llava-mm-vet.jsonl",
        images="images",
        num_questions=218,
        max_tokens=MANY_TOKENS,
        judge="GPT-4, asked by MM-Vet's own evaluator",
    ),
    "llava-wild": PublicSet(
        questions="questions.jsonl",
        images="images",
        num_questions=60,
        max_tokens=MANY_TOKENS,
        judge="GPT-4, asked by LLaVA's eval_gpt_review_bench.py",
    ),
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
