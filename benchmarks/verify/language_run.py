"""What a runtime makes of the reference's prompts; pictures go through its own vision backend."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from tinyllava_edge.runtimes.context import Context, Element, PictureRows
from tinyllava_edge.runtimes.model import Model

from .reference import PromptCase, Reference

Floats = npt.NDArray[np.float32]


class LanguageRun:
    """An opened model, and the reference whose prompts and pictures it is given."""

    def __init__(self, model: Model, reference: Reference) -> None:
        self._model = model
        self._pictures = reference.pictures
        self._forced: dict[PromptCase, Floats] = {}

    def elements(self, prompt: PromptCase) -> list[Element]:
        """Token ids, and the rows of each picture."""
        rows = iter(self._model.encode(self._files(prompt)))
        ids = self._model.tokenize(prompt.turns, num_pictures=len(prompt.pictures))
        return [PictureRows(b"", next(rows)) if token < 0 else token for token in ids]

    def logits(self, prompt: PromptCase) -> Floats:
        """[positions, vocab], through the public `logits`."""
        return self._model.logits(prompt.turns, self._files(prompt))

    def forced_logits(self, prompt: PromptCase, ids: Sequence[int]) -> Floats:
        """Logits [tokens, vocab] from which each of `ids`, the reference's, is to be predicted; kept."""
        if prompt not in self._forced:
            context = self._prefill(prompt)
            found = [context.last_logits()[None]]
            found += [context.extend(ids[:-1])] if len(ids) > 1 else []
            self._forced[prompt] = np.concatenate(found)
        return self._forced[prompt]

    def greedy(self, prompt: PromptCase, num_tokens: int) -> list[int]:
        """The most likely tokens, one by one."""
        return [token for token, _ in islice(self.steps(prompt), num_tokens)]

    def steps(self, prompt: PromptCase) -> Iterator[tuple[int, Floats]]:
        """The most likely token and the logits [vocab] that it is chosen from, one step after another."""
        context = self._prefill(prompt)
        while True:
            logits = context.last_logits()
            token = int(logits.argmax())
            yield token, logits
            context.append(token)

    def _prefill(self, prompt: PromptCase) -> Context:
        """The backend's context with a prompt in it, evaluated from nothing."""
        context = Context(self._model.language)
        context.prefill(self.elements(prompt))
        return context

    def _files(self, prompt: PromptCase) -> list[bytes]:
        return [self._pictures[index].file for index in prompt.pictures]


def input_rows(elements: Sequence[Element], table: Floats) -> Floats:
    """Input rows [positions, hidden], text from a table of embeddings."""
    return np.concatenate([table[e : e + 1] if isinstance(e, int) else e.rows for e in elements])
