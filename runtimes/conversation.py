"""The turns of a chat, as text and as what the model saw of them.

The ids that were generated are the truth of a past answer: tokenised again, its text may give other ids, and
the context could then not be reused. The next prompt is therefore what the model saw so far, the answer's end
token, and the ids that follow it when the whole conversation is tokenised as upstream does. Where that split
does not exist (the end string is not one token, or text around it merges), and where a stop string cut an
answer inside its ids, the whole conversation is tokenised from its text instead; the context is then reused
as far as it agrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.prompt import Template, TextTokenizer, Turn, place_markers

from .context import Element, PictureRows


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question ready for the model. In `elements`, -200 stands for each new picture, in order."""

    question: str
    honour_special: bool
    elements: tuple[Element, ...]

    def with_pictures(self, pictures: Sequence[PictureRows]) -> list[Element]:
        """The elements with every placeholder replaced."""
        rows = iter(pictures)
        return [next(rows) if element == IMAGE_TOKEN_ID else element for element in self.elements]


class Conversation:
    """Answered turns, and how the next question becomes a prompt."""

    def __init__(self, tokenizer: TextTokenizer, template: Template) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._end_id = tokenizer.token_id(template.end)
        self.turns: list[Turn] = []
        self._pictures: list[PictureRows] = []
        self._seen: list[Element] | None = []  # what the model saw; None: go by the text

    def ask(self, question: str, num_pictures: int, *, honour_special: bool) -> Prompt:
        """The prompt of the next question; changes nothing.

        Raises:
            PromptError: the question's markers do not fit the number of its pictures.
        """
        [(placed, _)] = place_markers([(question, None)], num_pictures)
        ids = self._encode([*self.turns, (placed, None)], honour_special)
        elements: list[Element] | None = None
        if self._seen:
            before = self._encode(self.turns, honour_special)
            if ids[: len(before)] == before:
                elements = [*self._seen, *ids[len(before) :]]
        if elements is None:
            elements = self._with_known_pictures(ids)
        return Prompt(question=placed, honour_special=honour_special, elements=tuple(elements))

    def add(
        self,
        prompt: Prompt,
        pictures: Sequence[PictureRows],
        answer: str,
        answer_ids: Sequence[int] | None,
    ) -> None:
        """Keep an answered turn.

        Args:
            prompt: of the question.
            pictures: new ones of this turn.
            answer: its text.
            answer_ids: the generated ids, or None where they say more than the text.
        """
        # A marker the model wrote out is text, and not a picture.
        self.turns.append((prompt.question, answer.replace(IMAGE_MARKER, "")))
        self._pictures.extend(pictures)
        if answer_ids is None or self._end_id is None:
            self._seen = None
        else:
            self._seen = [*prompt.with_pictures(pictures), *answer_ids, self._end_id]

    def _encode(self, turns: Sequence[Turn], honour_special: bool) -> list[int]:
        return self._tokenizer.encode(self._template, turns, honour_special=honour_special)

    def _with_known_pictures(self, ids: Sequence[int]) -> list[Element]:
        """Ids with the pictures of earlier turns in place; those of the new question stay placeholders."""
        known = iter(self._pictures)
        return [next(known, token) if token == IMAGE_TOKEN_ID else token for token in ids]
