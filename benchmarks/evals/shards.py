"""`eval --shard I/N`: the questions about every N-th picture, and all shards' answers together again."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyllava_edge.append_jsonl import Line
from tinyllava_edge.errors import DataError, ResumeError, UsageError

from .answers import Answers, Way, answer_files, known_answers, other_lines, read_answers
from .question import Question, Record

_FORM = re.compile(r"(\d{1,6})/(\d{1,6})")


def parse_shard(text: str) -> tuple[int, int] | None:
    """I and N of `I/N`; None of "".

    Raises:
        UsageError: it is none, or I is not one of 1 to N.
    """
    if not text:
        return None
    found = _FORM.fullmatch(text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, as 1/4, 2/4, 3/4 and 4/4.")
    return number, of


def shard_of(records: Sequence[Record], number: int, of: int) -> list[Record]:
    """Records in their places, without those of other shards: whole pictures, in turn as they come.

    A record that has no picture, or holds no question, takes a turn of its own.

    Raises:
        UsageError: there are more shards than pictures.
    """
    names = [_picture(place, record) for place, record in enumerate(records)]
    turns = {name: turn for turn, name in enumerate(dict.fromkeys(name for name in names if name))}
    if of > max(1, len(turns)):
        raise UsageError(
            f"--shard {number}/{of}: there are {len(turns)} pictures to ask about; N is that at most."
        )
    return [
        record if name and turns[name] % of == number - 1 else ()
        for record, name in zip(records, names, strict=True)
    ]


def _picture(place: int, record: Record) -> str:
    """What a record takes its turn by; "" where it was left out before."""
    if record == ():
        return ""
    with_picture = isinstance(record, tuple) and record[0].image is not None
    return record[0].picture_key if with_picture else f"record {place}"  # type: ignore[index]


def merged_answers(
    paths: Iterable[Path], questions: Sequence[Question], ways: Iterable[Way], bundle: str, max_tokens: int
) -> Answers:
    """All answers of several files, each with the files of other variants beside it.

    Args:
        paths: as they were given to --answers.
        questions: all of them.
        ways: that were asked.
        bundle: hash of its manifest.
        max_tokens: of an answer.

    Raises:
        DataError: a file is of another bundle or limit, or they lack answers, or have some twice.
    """
    found: list[tuple[Path, Line]] = []
    ways = list(ways)
    for given in paths:
        for path in answer_files(given, ways).values():
            found += [(path, line) for line in _lines(path, bundle, max_tokens)]
    try:
        answers, left = known_answers(found, questions, ways, failed=True)
    except ResumeError as error:
        raise DataError(str(error)) from None
    missing = {way: len(questions) - len(its) for way, its in answers.items() if len(its) < len(questions)}
    for (name, blind), num in missing.items():
        raise DataError(
            f"{', '.join(map(str, paths))}: {num} of {len(questions)} questions have no answer of {name}"
            f"{' blind' if blind else ''} there, or their pictures have changed. Give the files of all "
            "shards, each of which has ended."
        )
    if left:
        raise DataError(
            f"{', '.join(map(str, paths))}: {left} answers are there twice, or of variants that are not "
            "named. Give each shard's file once, with the same --runtime, --vision and --language."
        )
    return answers


def _lines(path: Path, bundle: str, max_tokens: int) -> list[Line]:
    lines = read_answers(path)
    for line in lines:
        made = line["metadata"].get("made_with")
        if not isinstance(made, dict):
            raise other_lines(path)
        if made.get("bundle") != bundle:
            raise DataError(
                f"{path}: holds answers of another bundle, of manifest {str(made.get('bundle'))[:12]}...; "
                f"this one's is {bundle[:12]}.... Give the bundle that was asked."
            )
        if made.get("max_tokens") != max_tokens:
            raise DataError(
                f"{path}: was asked with --max-tokens {made.get('max_tokens')}, and this is for "
                f"{max_tokens}. Give the same."
            )
    return lines
