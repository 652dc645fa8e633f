"""Spelling and credit of short answers, against VQAv2's and TextVQA's own scorers."""

import hashlib
import json

import pytest

from tests.benchmarks.evals.official import OFFICIAL
from tinyllava_edge.benchmarks.evals import vqa


def test_the_contractions_are_those_of_both_scorers() -> None:
    table = json.dumps([list(pair) for pair in sorted(vqa.CONTRACTIONS.items())])
    assert hashlib.sha256(table.encode()).hexdigest() == OFFICIAL["contractions_sha256"]


def test_spelling_is_that_of_textvqas_scorer() -> None:
    for text, expected in OFFICIAL["textvqa_spelling"]:
        assert vqa.normalised_textvqa(text) == expected, text


def test_spelling_is_that_of_vqav2s_scorer() -> None:
    for text, expected in OFFICIAL["vqav2_spelling"]:
        assert vqa.normalised_vqav2(text) == expected, text


@pytest.mark.parametrize(("name", "credit"), [("vqav2", vqa.credit_vqav2), ("textvqa", vqa.credit_textvqa)])
def test_an_answer_has_the_credit_that_the_scorer_gives(name: str, credit: vqa.Credit) -> None:
    for answer, people, expected in OFFICIAL[name]:
        assert credit(answer, people) == pytest.approx(expected, abs=1e-9), (answer, people)
    assert len({round(row[2], 3) for row in OFFICIAL[name]}) >= 4  # partial ones are among them


def test_textvqas_figures_are_those_worked_out_by_hand() -> None:
    people = ["stop"] * 4 + ["Stop sign", "stop sign", "STOP SIGN", "go", "go", "left"]
    # Three agree: each of them sees two others (2/3), the other seven see three (1): (3 * 2/3 + 7) / 10.
    assert vqa.credit_textvqa("The stop sign.", people) == pytest.approx(0.9)
    assert vqa.credit_textvqa("stop", people) == 1.0  # four agree
    assert vqa.credit_textvqa("go", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa.credit_textvqa("left", people) == pytest.approx(9 * (1 / 3) / 10)
    assert vqa.credit_textvqa("right", people) == 0.0
