"""POPE's reading of an answer and its figures, against upstream's own scorer and by hand."""

from pathlib import Path

import pytest

from tests.benchmarks.evals.official import OFFICIAL
from tinyllava_edge.benchmarks.evals.pope import parse_answer, score_pope
from tinyllava_edge.benchmarks.evals.question import Question


def asked(labels: list[str], split: str) -> list[Question]:
    return [
        Question(id=n, image=Path(f"{n}.jpg"), text="?", answers=(label,), type=split, rule="pope")
        for n, label in enumerate(labels)
    ]


def test_popes_figures_are_those_worked_out_by_hand() -> None:
    questions = [*asked(["yes", "yes", "no", "no"], "random"), *asked(["yes", "no"], "popular")]
    questions += asked(["yes", "no"], "adversarial")
    said = ["Yes", "No, there is not.", "Yes.", "no", "Yes", "No", "No", "Perhaps"]
    result = score_pope(questions, said)
    # random: one hit of two said and of two true; adversarial: "Perhaps" counts as yes, a miss.
    random = result["splits"]["random"]
    assert (random["accuracy"], random["precision"], random["recall"], random["f1"]) == (50, 50, 50, 50)
    assert random["yes_ratio"] == 50
    assert result["splits"]["popular"]["f1"] == 100
    adversarial = result["splits"]["adversarial"]
    assert (adversarial["accuracy"], adversarial["f1"], adversarial["unparsed"]) == (0, 0, 1)
    assert result["score"] == 50  # (50 + 100 + 0) / 3


def test_an_answer_is_read_as_upstreams_scorer_reads_it() -> None:
    for text, expected in OFFICIAL["pope"]["each"]:
        assert parse_answer(text)[0] == expected, text
    assert [parse_answer(text)[1] for text in ("Yes", "not one. Yes", "nothing", "")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_figures_are_upstreams() -> None:
    its = OFFICIAL["pope"]
    found = score_pope(asked(its["labels"], "all"), its["answers"])["splits"]["all"]
    names = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1"}
    for theirs, ours in {**names, "Yes ratio": "yes_ratio"}.items():
        # Upstream adds 1e-6 to its divisors.
        assert found[ours] == pytest.approx(100 * its["figures"][theirs], abs=1e-3), ours
