"""One question of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinyllava_edge.errors import DataError

from .tables import TablePicture

Shown = Path | TablePicture


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, what is expected, and the picture it is about.

    Attributes:
        id: as its file has it, a number or a text; where it has none, the record's place.
        image: the picture: a file, or what stands in a table.
        text: what is asked.
        answers: the expected ones, each of which is right, or ten people's; none where nothing is expected.
        type: scored by itself.
        rule: name of the rule that says what is right.
        prompt: the text as upstream's answer files repeat it, where that is not `text`.
        record: place in the file, from 0.
        has_id: of its own, in the file.
        picture: as its file names it.
        options: of several choices, by letter.
        labelled: the answer stands under `label`, as in POPE's files.
    """

    id: str | int
    image: Shown | None
    text: str
    answers: tuple[str, ...]
    type: str
    rule: str = field(default="exact", compare=False)
    prompt: str = field(default="", compare=False)
    record: int = field(default=0, compare=False)
    has_id: bool = field(default=True, compare=False)
    picture: str = field(default="", compare=False)
    options: Mapping[str, str] = field(default_factory=dict, compare=False)
    labelled: bool = field(default=False, compare=False)

    @property
    def expected(self) -> str | list[str] | None:
        """As it stands in an answer's line: the one answer, several, or null."""
        return (list(self.answers) if len(self.answers) > 1 else self.answers[0]) if self.answers else None

    @property
    def picture_key(self) -> str:
        """What tells its picture from others: rows of a table may share one."""
        return self.image.sha256 if isinstance(self.image, TablePicture) else str(self.image)

    @property
    def asked(self) -> str:
        """The question by itself, as two files about it share it: without the lines around and below it."""
        lines = [line for line in self.text.split("\n") if not line.startswith("Reference OCR token:")]
        first = " ".join((lines or [""])[0].lower().split())
        return first.removesuffix("please answer yes or no.").rstrip()


Record = tuple[Question, ...] | DataError  # of a file: its questions, or why there are none
