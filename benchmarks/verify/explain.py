"""`tinyllava-edge explain`: one question through the checkpoint and the bundle, on `verify`'s own ladder.

The stages judge the question's own prompt and picture; behind them both answers are compared. Why they part
where no stage fails: `parting.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tinyllava_edge.bundle import TOKENIZER_FILE
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.metrics import log_softmax, top1_margin
from tinyllava_edge.prompt import TextTokenizer
from tinyllava_edge.runtimes.context import Element

from .climb import climb
from .ladder import Ladder, Report
from .language_run import LanguageRun
from .parting import parting_cause
from .reference import Continuation
from .reference_question import NUM_ANSWER_TOKENS, QuestionReference
from .stage_language import OnStage


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one side answers, and where the answers part, how sure it is.

    Attributes:
        text, ids: the answer; ids with what ends it.
        token: its token there, as text.
        probability: that it gives its token.
        probability_of_other: that it gives the other's.
        margin: between its best and second best logit.
    """

    text: str
    ids: tuple[int, ...]
    token: str | None = None
    probability: float | None = None
    probability_of_other: float | None = None
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What became of one question.

    Attributes:
        report: of the ladder on this question.
        checkpoint, bundle: both answers; the bundle's is None where it gives none.
        prompt_ids, bundle_prompt_ids: -200 for the picture; positions: of the prompt in the context.
        parts_at: the first token at which the answers differ, or None where they are equal.
        cause: why, if anything differs.
    """

    report: Report
    checkpoint: Side
    bundle: Side | None
    prompt_ids: tuple[int, ...]
    bundle_prompt_ids: tuple[int, ...]
    positions: int
    parts_at: int | None
    cause: str

    @property
    def is_equal(self) -> bool:
        """Whether both answer the same and no stage fails."""
        return self.report.passed and self.bundle is not None and self.parts_at is None

    @property
    def verdict(self) -> str:
        """One line for people, which begins with "equal" or "different"."""
        if self.is_equal:
            return "equal: checkpoint and bundle give the same answer, and every stage is within its gates"
        answers = (
            "the answers are equal" if self.parts_at is None else f"answers part at token {self.parts_at}"
        )
        if self.bundle is None:
            answers = "the bundle gives no answer"
        first = self.report.first_failure
        stage = f"first stage that differs: {first.place}" if first else "every stage is within its gates"
        return f"different: {answers}; {stage}; likely cause: {self.cause}"

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        told = self.report.to_json()
        told.pop("verdict")
        return {
            "verdict": self.verdict,
            "equal": self.is_equal,
            "cause": self.cause,
            "parts_at": self.parts_at,
            "checkpoint": asdict(self.checkpoint),
            "bundle": None if self.bundle is None else asdict(self.bundle),
            "prompt_ids": list(self.prompt_ids),
            "bundle_prompt_ids": list(self.bundle_prompt_ids),
            "positions": self.positions,
            **{key: value for key, value in told.items() if key != "cause"},
        }


def explain(ladder: Ladder, on_stage: OnStage = lambda stage: None) -> Explanation:
    """Ask both sides.

    Args:
        ladder: with a `QuestionReference`, one vision and one language variant.
        on_stage: as of `climb`.

    Raises:
        BundleError: a part of the bundle that is computed with once more is damaged.
    """
    reference = ladder.reference
    assert isinstance(reference, QuestionReference)
    found: list[tuple[Continuation, list[Element]]] = []

    def ask(run: LanguageRun) -> None:
        most = max(1, min(NUM_ANSWER_TOKENS, reference.num_tokens))
        ids, rows = [], []
        for token, logits in run.steps(reference.question):
            ids.append(token)
            rows.append(logits)
            if token in ladder.bundle.manifest.prompt.stop_ids or len(ids) == most:
                break
        found.append((Continuation(tuple(ids), np.stack(rows)), run.elements(reference.question)))

    report = climb(ladder, on_stage, ask)
    first = report.first_failure
    theirs = reference.answer
    ours, elements = found[0] if found else (None, [])
    at = None if ours is None else first_difference(theirs.ids, ours.ids)
    cause = first.cause if first else ""
    if ours is not None and at is not None and not cause:
        cause = parting_cause(ladder, reference, elements, ours, at)
    tokenizer = TextTokenizer(
        ladder.bundle.read_text(TOKENIZER_FILE), bos_id=ladder.bundle.manifest.prompt.bos_id, checked=True
    )
    return Explanation(
        report=report,
        checkpoint=_side(tokenizer.decode, theirs, ours, at),
        bundle=None if ours is None else _side(tokenizer.decode, ours, theirs, at),
        prompt_ids=reference.ids(reference.question),
        bundle_prompt_ids=tuple(e if isinstance(e, int) else IMAGE_TOKEN_ID for e in elements),
        positions=len(reference.splice(reference.question)),
        parts_at=at,
        cause=cause,
    )


def first_difference(ids: Sequence[int], others: Sequence[int]) -> int | None:
    """Index of the first token that only one of two answers has, or None where they are equal."""
    if tuple(ids) == tuple(others):
        return None
    pairs = zip(ids, others, strict=False)
    shorter = min(len(ids), len(others))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)


def _side(
    decode: Callable[[Sequence[int]], str], own: Continuation, other: Continuation | None, at: int | None
) -> Side:
    side = Side(text=decode(own.ids), ids=own.ids)
    if other is None or at is None or at >= min(len(own.ids), len(other.ids)):
        return side
    if not np.isfinite(own.logits[at]).all():  # the stages say so
        return side
    odds = np.exp(log_softmax(own.logits[at]))
    return replace(
        side,
        token=decode(own.ids[: at + 1])[len(decode(own.ids[:at])) :],
        probability=float(odds[own.ids[at]]),
        probability_of_other=float(odds[other.ids[at]]),
        margin=float(top1_margin(own.logits[at : at + 1])[0]),
    )
