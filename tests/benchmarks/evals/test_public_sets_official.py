"""Small sets in upstream's own files, scored by upstream's own scripts once: our figures are theirs.

`official_runs.json` holds the files, answers to each question, what the scripts printed, and where they are
from. The scripts read the answers in the form in which `eval --answers` writes them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.evals.handed import HANDED
from tinyllava_edge.benchmarks.evals.mmmu import credit_mmmu, read_choice
from tinyllava_edge.benchmarks.evals.public_sets import read_public_set
from tinyllava_edge.benchmarks.evals.question import Question
from tinyllava_edge.benchmarks.evals.rules import RULES
from tinyllava_edge.benchmarks.evals.scores import credit

RUNS: dict[str, Any] = json.loads(Path(__file__).with_name("official_runs.json").read_text("utf-8"))


def questions_of(name: str, folder: Path) -> list[Question]:
    for path, text in RUNS[name]["files"].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    _, records, num_all = read_public_set(name, folder, 0)
    questions = [question for record in records if isinstance(record, tuple) for question in record]
    assert len(questions) == num_all == len(RUNS[name]["answers"])
    return questions


def figures_of(name: str, folder: Path) -> dict[str, Any]:
    return RULES[name].figures(questions_of(name, folder), RUNS[name]["answers"])


def test_pope_has_the_scripts_figures_of_each_split(tmp_path: Path) -> None:
    found = figures_of("pope", tmp_path)
    names = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1"}
    for split, printed in RUNS["pope"]["figures"].items():
        for theirs, ours in {**names, "Yes ratio": "yes_ratio"}.items():
            # The script adds 1e-6 to its divisors.
            assert found["splits"][split][ours] == pytest.approx(100 * printed[theirs], abs=2e-4), ours
    # By hand: F1 of 2 hits, 1 false alarm, 1 miss; of 1, 1 and 1; of 1, 1 and 0.
    assert found["score"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 2 / 3) / 3)


def test_textvqa_has_the_scripts_accuracy(tmp_path: Path) -> None:
    found = figures_of("textvqa", tmp_path)
    assert found["score"] == pytest.approx(RUNS["textvqa"]["figures"]["accuracy"], abs=0.005)
    assert found["score"] == pytest.approx(100 * (0.6 + 1 + 1 + 0.9 + 1 + 0) / 6)  # by hand


def test_scienceqa_has_the_scripts_accuracies_and_each_verdict(tmp_path: Path) -> None:
    its = RUNS["scienceqa"]
    found = figures_of("scienceqa", tmp_path)
    assert found["score"] == pytest.approx(its["figures"]["accuracy"], abs=0.005)
    assert found["img"] == pytest.approx(its["figures"]["img"], abs=0.005)
    pairs = zip(questions_of("scienceqa", tmp_path), its["answers"], strict=True)
    assert [credit(question, text) == 1 for question, text in pairs] == its["figures"]["right"]


def test_mmmu_has_the_tools_accuracies(tmp_path: Path) -> None:
    found = figures_of("mmmu", tmp_path)
    printed = RUNS["mmmu"]["figures"]
    assert found["score"] == pytest.approx(100 * printed["Overall"]["acc"], abs=0.05)
    assert {name: round(value / 100, 3) for name, value in found["subjects"].items()} == {
        name: printed[name]["acc"] for name in ("Art_Theory", "Chemistry")
    }
    questions = questions_of("mmmu", tmp_path)
    handed = HANDED["mmmu"](list(zip(questions, RUNS["mmmu"]["answers"], strict=True)))
    assert handed == RUNS["mmmu"]["submission"]


def test_mmmu_reads_a_choice_as_the_tool_does() -> None:
    its = RUNS["mmmu"]
    for text, expected in its["choices"]:
        assert read_choice(text, its["options"]) == expected, text
    assert {"", *"ABCD"} == {expected for _, expected in its["choices"]}


def asked(answers: tuple[str, ...], options: dict[str, str], picture: str | None = "a.png") -> Question:
    image = None if picture is None else Path(picture)
    return Question(id="i", image=image, text="?", answers=answers, type="all", rule="mmmu", options=options)


def test_mmmu_judges_open_answers_as_the_tool_does() -> None:
    for text, expected, right in RUNS["mmmu"]["open"]:
        answers = tuple(expected) if isinstance(expected, list) else (expected,)
        assert credit_mmmu(asked(answers, {}), text) == right, text


def test_what_mmmus_tool_would_draw_has_the_share_that_a_draw_wins() -> None:
    options = {"A": "x", "B": "y", "C": "z", "D": "w"}
    assert credit_mmmu(asked(("B",), options), "no idea") == 0.25
    assert credit_mmmu(asked(("B",), options, None), "B") == 0.25  # several pictures: upstream draws
    assert credit_mmmu(asked(("5",), {}, None), "5") == 0
    found = RULES["mmmu"].figures([asked(("B",), options)] * 2, ["no idea", None])
    assert (found["score"], found["guessed"]) == (12.5, 1)


@pytest.mark.parametrize("name", ["gqa", "mmvet", "vqav2"])
def test_a_file_for_a_judge_is_that_of_upstreams_converter(name: str) -> None:
    its = RUNS["submissions"]
    pairs = [
        (Question(id=id_, image=Path("a"), text="?", answers=(), type="all"), text)
        for id_, text in its["answers"]
    ]
    assert HANDED[name](pairs) == its[name]
