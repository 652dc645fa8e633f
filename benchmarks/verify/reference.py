"""What is expected of a bundle, whoever says it.

`CheckpointReference` computes everything anew with torch; `StoredReference` reads what `export` put beside
the model, for a device without torch. A stage that needs more than this protocol asks for a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .upstream_pixels import TrialPicture

Floats = npt.NDArray[np.float32]
Turns = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class TextCase:
    """A conversation, its prompt (None: not known) and its token ids.

    `num_pictures` is None where upstream's rule holds, which keeps one marker a question.
    """

    turns: Turns
    prompt: str | None
    ids: tuple[int, ...]
    num_pictures: int | None = None


@dataclass(frozen=True)
class PromptCase:
    """A conversation about pictures, by their index in the reference's `pictures`."""

    name: str
    turns: Turns
    pictures: tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """Tokens that follow a prompt, and the logits [tokens, vocab] from which each was chosen."""

    ids: tuple[int, ...]
    logits: Floats


@dataclass(frozen=True)
class GreedyAnswer:
    """The most likely tokens, and at each the gap between the best and the second best logit."""

    ids: tuple[int, ...]
    margins: npt.NDArray[np.float64]


class Reference(Protocol):
    """What the stages compare with. `None` means that this reference cannot say."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def pictures(self) -> Sequence[TrialPicture]:
        """Pictures that prompts and tensors name by index."""

    @property
    def prompts(self) -> Sequence[PromptCase]:
        """Conversations whose logits are compared."""

    @property
    def texts(self) -> Sequence[TextCase]:
        """Conversations whose ids are compared."""

    def at_tokens(self, tokens: int) -> "Reference":
        """The same with so many visual tokens of a picture, of the budgets there are."""

    def stop_ids(self) -> set[int] | None:
        """Ids that end an answer."""

    def pixels(self, picture: int) -> Floats:
        """[3, height, width]."""

    def tower(self, picture: int) -> Floats:
        """[tokens, vision hidden]: the selected layer, token policy applied."""

    def embeddings(self, picture: int) -> Floats:
        """[tokens, hidden]: connector output."""

    def logits(self, prompt: PromptCase) -> Floats:
        """[n, vocab]: of the last n positions, all of them where the reference has them."""

    def continuation(self, prompt: PromptCase) -> Continuation | None:
        """A continuation sampled at temperature 1, which is nearer to text than a greedy loop is."""

    def greedy(self, prompt: PromptCase) -> GreedyAnswer:
        """The greedy continuation."""
