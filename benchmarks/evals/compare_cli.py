"""The command `tinyllava-edge eval compare`: two files of answers to the same questions."""

import json as json_module
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllava_edge.command_options import JsonOption
from tinyllava_edge.console import note, print_json, stdout
from tinyllava_edge.errors import DataError

if TYPE_CHECKING:
    from .statistics import Array


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question's answer in a file.

    Attributes:
        text: of the answer.
        right: its share of what is right, between 0 and 1.
        picture: what questions about one picture share.
        rule: by which it is right.
    """

    text: str
    right: float
    picture: str
    rule: str


def eval_compare(
    first: Annotated[Path, typer.Argument(help="File of --answers of one variant, runtime or bundle.")],
    other: Annotated[Path, typer.Argument(help="That of another one, of the same questions.")],
    json: JsonOption = False,
) -> None:
    """Compare two files of answers question by question: how far apart their accuracies are, and how surely.

    The interval and the standard error draw whole pictures; McNemar's exact test takes questions for
    independent.
    """
    from .rules import folded
    from .statistics import interval, paired

    pairs, rights, clusters = read_pairs(first, other)
    result: dict[str, Any] = {"rule": pairs[0][0].rule, "questions": len(pairs)}
    result["images"] = len(set(clusters))
    for name, right in zip(("first", "other"), rights, strict=True):
        result[name] = {"accuracy": float(right.mean()), "ci95": list(interval(right, clusters))}
    result["agreement"] = sum(folded(a.text) == folded(b.text) for a, b in pairs) / len(pairs)
    result |= paired(rights[0], rights[1], clusters)
    if json:
        print_json(result)
        return
    low, high = result["difference_ci95"]
    tested = result["mcnemar"]
    for path, name in ((first, "first"), (other, "other")):
        least, most = result[name]["ci95"]
        stdout.print(f"{path}: {result[name]['accuracy']:.4f} [{least:.4f}, {most:.4f}]")
    stdout.print(
        f"difference {result['difference']:+.4f} [{low:+.4f}, {high:+.4f}], standard error "
        f"{result['difference_se']:.4f}; answers agree in {result['agreement']:.1%}"
    )
    stdout.print(
        f"only the first right {tested['first']}, only the other {tested['other']}: exact p {tested['p']:.3g}"
    )
    note(
        f"{len(pairs)} questions about {result['images']} pictures, which are drawn whole; one point "
        f"of difference would want {result['questions_for_one_point']:,} such questions"
    )


def read_pairs(
    first: Path, other: Path
) -> tuple[Sequence[tuple[Answered, Answered]], "list[Array]", list[str]]:
    """Two files' answers to each question, how far each side's are right, and whose pictures are one.

    Raises:
        DataError: as `read_answered` and `paired_answers`; or they are scored by unlike rules.
    """
    import numpy as np

    pairs = paired_answers(read_answered(first), read_answered(other), f"{first} and {other}")
    rules = {answered.rule for pair in pairs for answered in pair}
    if len(rules) > 1:
        raise DataError(
            f"{first} and {other} are scored by unlike rules: {', '.join(sorted(rules))}. Give files of "
            "one --benchmark, or of one kind of question file."
        )
    rights = [np.array([pair[side].right for pair in pairs]) for side in (0, 1)]
    return pairs, rights, [one.picture for one, _ in pairs]


def read_answered(path: Path) -> dict[str, list[Answered]]:
    """The scored answers of a file, by question and picture.

    Raises:
        DataError: it holds something else, or nothing that was scored.
    """
    from .answers import other_lines, read_answers

    lines = read_answers(path)
    found: dict[str, list[Answered]] = defaultdict(list)
    try:
        for line in lines:
            about = line["metadata"]
            if about["right"] is None:
                continue
            key = [line["question_id"], line["prompt"], about["type"], about["expected"]]
            picture = about["picture_sha256"] or str(line["question_id"])
            text, right, rule = line["text"], float(about["right"]), about["rule"]
            if not (isinstance(text, str) and isinstance(rule, str) and 0 <= right <= 1):
                raise ValueError(f"text, rule or right of question {line['question_id']!r:.40}")
            found[json_module.dumps([*key, picture])].append(
                Answered(text=text, right=right, picture=str(picture), rule=rule)
            )
    except (KeyError, TypeError, ValueError) as error:
        raise other_lines(path, str(error)) from None
    if not found:
        raise DataError(f"{path}: holds no answer that was scored. Score it: eval with --references.")
    return found


def paired_answers(
    first: dict[str, list[Answered]], other: dict[str, list[Answered]], names: str
) -> Sequence[tuple[Answered, Answered]]:
    """Both answers to each question.

    Raises:
        DataError: one file has questions, or pictures, that the other lacks.
    """
    counts = [{key: len(its) for key, its in side.items()} for side in (first, other)]
    if counts[0] != counts[1]:
        lacking = [
            sum(max(0, num - theirs.get(key, 0)) for key, num in ours.items())
            for ours, theirs in (counts, counts[::-1])
        ]
        raise DataError(
            f"{names} are about unlike questions or pictures: {lacking[0]} of the first are not in the "
            f"other, {lacking[1]} of the other not in the first. Ask both the same; merge shards first."
        )
    return [pair for key, its in first.items() for pair in zip(its, other[key], strict=True)]
