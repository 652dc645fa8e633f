"""What is expected of one question about one picture: torch on the checkpoint is asked it."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ContextOverflowError
from tinyllava_edge.image import open_picture
from tinyllava_edge.metrics import top1_margin
from tinyllava_edge.prompt import TextTokenizer, place_markers
from tinyllava_edge.runtimes.base import BackendOptions

from .reference import Continuation, GreedyAnswer, PromptCase, TextCase, Turns
from .reference_checkpoint import CheckpointReference
from .upstream_pixels import TrialPicture

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
    template = manifest.prompt.template
    ids = tokenizer.encode(template, place_markers(asked(question), 1, template))
    needed, available = len(ids) - 1 + manifest.vision.num_tokens, options.positions(manifest.language)
    if needed >= available:
        raise ContextOverflowError(
            f"the question makes a prompt of {needed} positions, {manifest.vision.num_tokens} of them the "
            f"picture, and the context holds {available} with the answer. Ask something shorter."
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
