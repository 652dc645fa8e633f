"""A conversation with a model: its turns, as text and as what the model saw of them.

The ids that were generated are the truth of a past answer: tokenised again, its text may give other ids, and
the context could then not be reused. The next prompt is therefore what the model saw so far, the answer's end
token, and the ids that follow it when the whole conversation is tokenised as upstream does. Where that split
does not exist (the end string is not one token, or text around it merges), and where a stop string cut an
answer inside its ids, the whole conversation is tokenised from its text instead; the context is then reused
as far as it agrees.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.image import Picture
from tinyllava_edge.prompt import Template, Turn, check_turns, place_markers

from .context import Element, PictureRows
from .pictures import as_pictures
from .stream import Run, Stream
from .timings import Stopwatch

if TYPE_CHECKING:
    from .model import Model


class Chat:
    """A conversation; several may be held with one model, which answers one question at a time."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._template = model.bundle.manifest.prompt.template
        self._end_id = model.tokenizer.token_id(self._template.end)
        self._begin()

    @property
    def turns(self) -> list[Turn]:
        """Questions, with their markers placed, and answers of the conversation so far."""
        return list(self._turns)

    def __repr__(self) -> str:
        last = f", last {self._turns[-1][0][:40]!r}" if self._turns else ""
        return f"<Chat of {len(self._turns)} turns, {len(self._pictures)} pictures{last}>"

    def reset(self) -> None:
        """Begin a new conversation.

        What was computed stays: a prompt that begins like the last one (the same picture, say) reuses it.

        Raises:
            BackendError: the model is closed.
        """
        with self._model.access.call():
            self._model.end_running()
            self._begin()

    def ask(
        self,
        question: str,
        pictures: Sequence[Picture] | Picture | None = None,
        *,
        honour_special: bool = False,
        system: str | None = None,
        **how: Any,
    ) -> Stream:
        """Ask a question, with new pictures or about those of earlier turns; the answer comes in pieces.

        The turn counts when the iteration is done, or when it is closed after the first piece (`break`,
        Ctrl-C): the answer is then what was handed out. An error, or closing before that, drops the turn and
        leaves the conversation as it was.

        Args:
            question: one picture's `<image>` marker moves to the front; several pictures need one each.
            pictures: new ones, or a single one: paths, file contents or PIL images.
            honour_special: see `Model.answer`, as for errors and times.
            system: likewise; of this answer alone, so that the one before may have had another.
            how: its `sampling`, `max_tokens`, `stop`, `json_schema`, `grammar` and `logprobs`.
        """
        with self._model.access.call():
            self._model.end_running()
            stopwatch = Stopwatch()
            given = as_pictures(pictures)
            check_turns([*self._turns, (question, None)])
            with stopwatch.stage("tokenize"):
                [(placed, _)] = place_markers([(question, None)], len(given), self._template)
                template = self._model.template(system)
                prompt = self._prompt(template, placed, honour_special)
            keep = partial(self._keep, template, placed)
            return self._model.start(prompt, given, stopwatch, on_end=keep, **how)

    def _begin(self) -> None:
        self._turns: list[Turn] = []
        self._pictures: list[PictureRows] = []
        self._seen: list[Element] = []  # what the model saw; empty: go by the text
        self._seen_with = self._template

    def _prompt(self, template: Template, question: str, honour_special: bool) -> list[Element]:
        """The conversation up to a question whose markers are placed; -200 stands for its pictures."""
        encode = partial(self._model.tokenizer.encode, template, honour_special=honour_special)
        ids = encode([*self._turns, (question, None)])
        if self._seen and template == self._seen_with:
            before = encode(self._turns)
            if ids[: len(before)] == before:
                return [*self._seen, *ids[len(before) :]]
        known = iter(self._pictures)
        return [next(known, token) if token == IMAGE_TOKEN_ID else token for token in ids]

    def _keep(self, template: Template, question: str, run: Run) -> None:
        """Add the turn, with the generated ids where they say just what the text says."""
        is_closed = run.finish == "closed"
        if is_closed and not run.text.text:
            return
        # A marker the model wrote out is text, and not a picture.
        self._turns.append((question, run.text.text.replace(IMAGE_MARKER, "")))
        self._pictures = [element for element in run.prompt if isinstance(element, PictureRows)]
        is_cut = run.finish == "stop_string" or (is_closed and run.text.holds_text)
        end = [] if is_cut or self._end_id is None else [self._end_id]
        self._seen = [*run.prompt, *run.ids, *end] if end else []
        self._seen_with = template
