"""What a JSON schema costs: answers that the token limit cut, accuracy and time, with one and without.

    python -m tools.schema_cost BUNDLE --questions Q.json --images DIR [-o FILE]

The same questions, drawn by a fixed seed, are asked in four ways: freely; as `{"answer": TEXT}`; as the same
with one of the answers that the questions' file expects anywhere; and, by a grammar, as one of these answers
without the JSON around. An answer that was cut or cannot be read is wrong.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge import open_bundle
from tinyllava_edge.benchmarks.evals.asked import read_own
from tinyllava_edge.benchmarks.evals.question import Question
from tinyllava_edge.benchmarks.evals.scores import compare, score
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.runtimes.model import Model

_MAX_TOKENS, _SEED = 64, 0


def schema_of(answer: dict[str, Any]) -> dict[str, Any]:
    """An object with an answer of this schema, and nothing else."""
    return {"type": "object", "properties": {"answer": answer}, "required": ["answer"]}


def asked(
    model: Model, questions: Sequence[Question], wanted: dict[str, Any]
) -> tuple[list[str | None], dict[str, Any]]:
    """What was answered, None where it cannot be read; and what it took."""
    answers: list[str | None] = []
    cut, spent = 0, []
    for question in questions:
        start = time.perf_counter()
        stream = model.answer([(question.text, None)], str(question.image), max_tokens=_MAX_TOKENS, **wanted)
        text = "".join(stream)
        spent.append(time.perf_counter() - start)
        cut += stream.finish == "max_tokens"
        answers.append(_inside(text) if "json_schema" in wanted else text)
    unread = sum(answer is None for answer in answers)
    return answers, {
        "cut": cut / len(questions),
        "unread": unread / len(questions),
        "median_ms": round(1000 * statistics.median(spent), 2),
    }


def _inside(text: str) -> str | None:
    try:
        return str(json.loads(text)["answer"])
    except ValueError:
        return None


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    known = read_own(given.questions, given.images, (), "").questions
    questions = random.Random(_SEED).sample(known, min(given.n, len(known)))
    choices = sorted({answer for question in known for answer in question.answers})
    ways: dict[str, dict[str, Any]] = {
        "free": {},
        "text": {"json_schema": schema_of({"type": "string"})},
        "choice": {"json_schema": schema_of({"enum": choices})},
        "bare choice": {"grammar": f"root ::= {' | '.join(map(json.dumps, choices))}"},
    }
    rows: dict[str, dict[str, Any]] = {}
    first: list[str | None] = []
    with open_bundle(bundle_path(given.bundle)) as model:
        for name, wanted in ways.items():
            answers, row = asked(model, questions, wanted)
            first = first or answers
            got = score(questions, answers)["all"]
            against = compare(questions, first, answers) if wanted else {}
            rows[name] = {"accuracy": got.accuracy, "ci95": list(got.interval), **row, **against}
            sys.stdout.write(f"{name} {json.dumps(rows[name])}\n")
        report = {
            "bundle": str(given.bundle),
            "manifest_sha256": model.bundle.manifest_sha256,
            "runtime": model.runtime,
            "backends": [model.vision.name, model.language.name],
            "questions": given.questions.name,
            "asked": len(questions),
            "of": len(known),
            "seed": _SEED,
            "max_tokens": _MAX_TOKENS,
            "choices": len(choices),
            "ways": rows,
        }
    if given.output:
        given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
