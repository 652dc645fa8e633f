"""MME's score per category, against its own tool."""

from pathlib import Path

import pytest

from tests.benchmarks.evals.official import OFFICIAL
from tinyllava_edge.benchmarks.evals.mme import score_mme
from tinyllava_edge.benchmarks.evals.question import Question


def test_accuracy_and_accuracy_plus_are_the_tools() -> None:
    its = OFFICIAL["mme"]
    questions = [
        Question(
            id=n, image=Path(category, image), text="?", answers=(gt.lower(),), type=category, rule="mme"
        )
        for n, (category, image, gt, _) in enumerate(its["answers"])
    ]
    found = score_mme(questions, [answer for *_, answer in its["answers"]])
    scores = {name: category["score"] for name, category in found["categories"].items()}
    assert scores == pytest.approx(its["categories"])
    assert (found["perception"], found["cognition"]) == pytest.approx((its["perception"], its["cognition"]))
    assert found["score"] == found["perception"]
    assert len(set(scores.values())) > 5


def test_of_a_few_categories_the_score_is_their_sum() -> None:
    questions = [
        Question(id=n, image=Path("a"), text="?", answers=(gt,), type="count", rule="mme")
        for n, gt in enumerate(("yes", "no"))
    ]
    found = score_mme(questions, ["Yes", None])
    assert (found["score"], "perception" in found) == (50, False)  # half right, no picture all right
    assert score_mme(questions, ["Yes", "no."])["score"] == 200
