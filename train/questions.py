"""The questions of the nano data, asked anew in every epoch.

Each picture of the data set has one question of each type, in one of a few wordings. Here the wordings of a
type are shuffled over all pictures, and a yes/no question may be about any kind of thing: the words all come
from the training file. Unknown wordings are answered with the kind of thing: a part of those questions is
garbled, so that the model does not learn that only three sentences exist.
"""

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.config import IMAGE_MARKER
from tinyllava_edge.errors import DataError

from .data import AnsweredTurn, Conversation

_TYPES = ("name", "kind", "yesno")
_GARBLED_SHARE = 0.3


@dataclass(frozen=True)
class Facts:
    """What the data say about one picture."""

    picture: Path
    name: str
    kind: str


class QuestionBook:
    """Pictures with their facts, and the wordings to ask for them.

    Args:
        records: LLaVA records with `type` (name, kind or yesno), one of each type for every picture.
        images: folder that the image paths are relative to.

    Raises:
        DataError: a record has no type, or a picture lacks its name or kind.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], images: Path) -> None:
        answers: dict[str, dict[str, AnsweredTurn]] = {}
        for record in records:
            if record.get("type") not in _TYPES:
                raise DataError(
                    f"record {record.get('id')!r}: type is {record.get('type')!r}, "
                    f"expected one of {', '.join(_TYPES)}."
                )
            question, answer = (message["value"] for message in record["conversations"])
            text = question.replace(IMAGE_MARKER, "").strip()
            answers.setdefault(record["image"], {})[record["type"]] = (text, answer)
        self.facts: list[Facts] = []
        self.wordings: dict[str, list[str]] = {"name": [], "kind": []}
        self.about: dict[str, list[str]] = {}  # kind -> yes/no questions that were answered yes for it
        for image, by_type in answers.items():
            if not {"name", "kind"} <= by_type.keys():
                raise DataError(f"picture {image!r}: needs a question for its name and one for its kind.")
            kind = by_type["kind"][1]
            self.facts.append(Facts(images / image, by_type["name"][1], kind))
            for type_, wordings in self.wordings.items():
                _add(wordings, by_type[type_][0])
            question, answer = by_type.get("yesno", ("", ""))
            if answer == "yes":
                _add(self.about.setdefault(kind, []), question)
        self.words = sorted({word for text in self.texts() for word in text.split()})

    def texts(self) -> list[str]:
        """Every question, once."""
        return [
            *self.wordings["name"],
            *self.wordings["kind"],
            *(q for qs in self.about.values() for q in qs),
        ]

    def ask(self, facts: Facts, rng: random.Random) -> Conversation:
        """A conversation of one to four turns about one picture, in random order and wording."""
        other = rng.choice([kind for kind in self.about if kind != facts.kind])
        turns = [
            (rng.choice(self.wordings["name"]), facts.name),
            (self._kind_question(rng), facts.kind),
            (rng.choice(self.about[other]), "no"),
        ]
        if facts.kind in self.about:
            turns.append((rng.choice(self.about[facts.kind]), "yes"))
        rng.shuffle(turns)
        turns = turns[: rng.randint(1, len(turns))]
        turns[0] = (f"{IMAGE_MARKER}\n{turns[0][0]}", turns[0][1])
        return Conversation(id=facts.picture.name, picture=facts.picture, turns=tuple(turns))

    def caption(self, facts: Facts) -> Conversation:
        """The picture and what it shows; the kind first, so that it is not read off the name."""
        turn = (IMAGE_MARKER, f"{facts.kind}, {facts.name}")
        return Conversation(id=facts.picture.name, picture=facts.picture, turns=(turn,))

    def _kind_question(self, rng: random.Random) -> str:
        question = rng.choice(self.wordings["kind"])
        if rng.random() >= _GARBLED_SHARE:
            return question
        words = rng.choice(self.texts()).split()
        words[0] = _noise(rng)
        kept = [word for word in words[1:] if rng.random() < 0.6]
        extra = [
            rng.choice(self.words) if rng.random() < 0.5 else _noise(rng) for _ in range(rng.randint(0, 2))
        ]
        return " ".join([words[0], *extra, *kept])


def _noise(rng: random.Random) -> str:
    word = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 9)))
    return word.capitalize() if rng.random() < 0.7 else word


def _add(wordings: list[str], text: str) -> None:
    if text not in wordings:
        wordings.append(text)
