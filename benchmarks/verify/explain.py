"""`tinyllava-edge explain`: one question through the checkpoint and the bundle, on `verify`'s own ladder.

The stages judge the question's own prompt and picture. Behind them both answers are compared, and where these
part although no stage fails, torch is asked once more with each of the bundle's parts in turn: what makes it
answer as the bundle does is the cause.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ContextOverflowError
from tinyllava_edge.image import open_picture
from tinyllava_edge.metrics import log_softmax, max_abs_difference, top1_margin
from tinyllava_edge.precisions import LANGUAGE_CLASSES, LANGUAGE_TYPES
from tinyllava_edge.prompt import TextTokenizer, place_markers
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.context import Element

from .climb import climb
from .ladder import Ladder, Report, number
from .language_run import LanguageRun, input_rows
from .reference import Continuation, GreedyAnswer, PromptCase, TextCase, Turns
from .reference_checkpoint import CheckpointReference
from .stage_dequantized import QUANTIZATION, wider_type
from .stage_language import OnStage
from .stage_weights import dequantized_parameters, gguf_path
from .upstream_pixels import TrialPicture

Floats = npt.NDArray[np.float32]
# Of the sampled continuation, so that the gates of teacher_forced hold as in `verify`.
NUM_TOKENS = 208
NUM_ANSWER_TOKENS = 64


def asked(question: str) -> Turns:
    """The turns of a question about one picture."""
    text = question.replace(IMAGE_MARKER, "").strip()
    return ((f"{IMAGE_MARKER}\n{text}" if text else IMAGE_MARKER, None),)


def room_behind(bundle: Bundle, options: BackendOptions, question: str) -> int:
    """Positions of the context that a question leaves to its answer: one at least.

    Raises:
        ContextOverflowError: it leaves none.
    """
    manifest = bundle.manifest
    tokenizer = TextTokenizer(bundle.read_text(TOKENIZER_FILE), bos_id=manifest.prompt.bos_id, checked=True)
    ids = tokenizer.encode(manifest.prompt.template, place_markers(asked(question), 1))
    needed, available = len(ids) - 1 + manifest.vision.num_tokens, options.positions(manifest.language)
    if needed >= available:
        raise ContextOverflowError(
            f"the question makes a prompt of {needed} positions ({manifest.vision.num_tokens} of the picture), "
            f"and the context holds {available} with the answer. Ask something shorter."
        )
    return available - needed


class QuestionReference(CheckpointReference):
    """Torch on the checkpoint, asked one question about one picture.

    Args:
        checkpoint: as of `CheckpointReference`.
        picture: a file's content.
        question: without a marker.
        room: tokens that the context has behind the prompt.
    """

    def __init__(self, checkpoint: Checkpoint, *, picture: bytes, question: str, room: int) -> None:
        super().__init__(checkpoint, num_tokens=min(NUM_TOKENS, room))
        self.question = PromptCase("the question", asked(question), (0,))
        self.pictures = [TrialPicture("the picture", picture, np.asarray(open_picture(picture)))]
        self.prompts = (self.question,)
        self._room = room

    @cached_property
    def texts(self) -> list[TextCase]:
        """The question alone."""
        return [self._text_case(self.question.turns)]

    @cached_property
    def answer(self) -> Continuation:
        """The greedy answer, up to its end."""
        num_tokens = min(NUM_ANSWER_TOKENS, self._room)
        found = self._continue(self.question, lambda logits: int(logits.argmax()), num_tokens)
        length = length_of_answer(found.ids, self.stop_ids())
        return Continuation(found.ids[:length], found.logits[:length])

    def greedy(self, prompt: PromptCase) -> GreedyAnswer:
        """The answer, with its margins."""
        return GreedyAnswer(self.answer.ids, top1_margin(self.answer.logits))


def length_of_answer(ids: Sequence[int], stop_ids: set[int]) -> int:
    """Tokens up to the first that ends an answer, and that one."""
    return next((index for index, token in enumerate(ids, start=1) if token in stop_ids), len(ids))


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
        prompt_ids: the checkpoint's; positions: of the prompt in the context.
        parts_at: the first token at which the answers differ, or None where they are equal.
        cause: why, if anything differs.
    """

    report: Report
    checkpoint: Side
    bundle: Side | None
    prompt_ids: tuple[int, ...]
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
        answers = "the answers are equal" if self.parts_at is None else f"answers part at token {self.parts_at}"
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
        cause = _parting_cause(ladder, reference, elements, ours, at)
    tokenizer = TextTokenizer(
        ladder.bundle.read_text(TOKENIZER_FILE), bos_id=ladder.bundle.manifest.prompt.bos_id, checked=True
    )
    ids = reference.ids(reference.question)
    return Explanation(
        report=report,
        checkpoint=_side(tokenizer.decode, theirs, ours, at),
        bundle=None if ours is None else _side(tokenizer.decode, ours, theirs, at),
        prompt_ids=ids,
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
    odds = np.exp(log_softmax(own.logits[at]))
    return replace(
        side,
        token=decode(own.ids[: at + 1])[len(decode(own.ids[:at])) :],
        probability=float(odds[own.ids[at]]),
        probability_of_other=float(odds[other.ids[at]]),
        margin=float(top1_margin(own.logits[at : at + 1])[0]),
    )


def _parting_cause(
    ladder: Ladder, reference: QuestionReference, elements: Sequence[Element], ours: Continuation, at: int
) -> str:
    """Which part of the bundle makes torch answer as the bundle does, where every stage is within its gates."""
    vision, language = ladder.vision[0], ladder.language[0]
    is_quantized = LANGUAGE_CLASSES[LANGUAGE_TYPES[language.name]].is_quantized
    answer, token = reference.answer, ours.ids[at]
    if ladder.reads_gguf and _token_with(reference, at, path=gguf_path(ladder, language)) == token:
        if is_quantized:
            return (
                f"{QUANTIZATION}: torch with the values of language {language.name} answers so, too; the file is "
                f"what it should be; {wider_type(ladder.bundle, language.name)}"
            )
        return f"rounding of the weights to {language.name}, with which torch answers so, too{_tie(answer, at)}"
    if _token_with(reference, at, elements=elements) == token:
        return (
            f"rounding of vision {vision.name}: torch with its embeddings answers so, too{_tie(answer, at)}; "
            "take a more precise --vision"
        )
    if is_quantized:
        return (
            f"{QUANTIZATION}: every stage is within its gates, so the runtime computes what language "
            f"{language.name} gives{_tie(answer, at)}; {wider_type(ladder.bundle, language.name)}"
        )
    error = max_abs_difference(answer.logits[at], ours.logits[at])
    return f"rounding while computing, which moves a logit by {number(error)} here{_tie(answer, at)}"


def _tie(answer: Continuation, at: int) -> str:
    return f" (the checkpoint's best two logits are {number(float(top1_margin(answer.logits)[at]))} apart)"


def _token_with(
    reference: QuestionReference, at: int, *, path: Path | None = None, elements: Sequence[Element] = ()
) -> int:
    """Torch's token number `at` of the answer, with the weights of a GGUF file or the bundle's picture rows."""
    import torch

    from .gguf_files import read_tensor

    parameters: Mapping[str, torch.Tensor] = {}
    table = reference.embedding_table()
    if path is not None:
        parameters = dequantized_parameters(reference, path)
        _, table = read_tensor(path, "token_embd.weight")
    prompt = input_rows(elements, table) if elements else reference.splice_with(table, reference.question)
    rows = np.concatenate([prompt, table[list(reference.answer.ids[:at])]])
    return int(reference.logits_with(parameters, torch.from_numpy(rows))[-1].argmax())
