"""The questions of the nano data, asked anew in every epoch.

Each picture of the data set has one question of each type, in one of a few wordings. Here the wordings of a
type are shuffled over all pictures, and a yes/no question may be about any kind of thing: the words all come
from the training file. A part of the questions is garbled, so that the model does not learn that only a few
sentences exist: of a yes/no question the kind asked about stays; what else cannot be made out is answered
with the kind of thing.
"""

import json
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.errors import DataError

Turns = tuple[tuple[str, str], ...]  # question and answer of each

_TYPES = ("name", "kind", "yesno")
_GARBLED_SHARE = 0.5
_GARBLED_WORDS = (0.15, 0.4, 0.8, 1.0)  # share of the words of a garbled question that are changed


@dataclass(frozen=True)
class Facts:
    """What the data say about one picture."""

    picture: Path
    name: str
    kind: str


def read_records(path: Path, images: Path) -> list[dict[str, Any]]:
    """Read a LLaVA JSON file of one question a record, and look for the pictures in `images`.

    Raises:
        DataError: the file is missing or of another form, or pictures are missing.
    """
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        names = [record["image"] for record in records if all(map(str.strip, dialogue(record)))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: expected a list of image, type and conversations of one question and one answer, "
            f"as LLaVA has; {error!r}."
        ) from None
    missing = [name for name in dict.fromkeys(names) if not (images / name).is_file()]
    if missing:
        raise DataError(f"{len(missing)} pictures are missing in {images}, first {missing[0]}. See --images.")
    return records


def dialogue(record: Mapping[str, Any]) -> tuple[str, str]:
    """Question and answer of a record."""
    question, answer = (message["value"] for message in record["conversations"])
    return question, answer


class QuestionBook:
    """Pictures with their facts, and the wordings to ask for them.

    Args:
        records: LLaVA records with `type` (name, kind or yesno), one of each type for every picture.
        images: folder that the image paths are relative to.

    Raises:
        DataError: a record has no type, or a picture lacks its name or kind.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], images: Path) -> None:
        answers: dict[str, dict[str, tuple[str, str]]] = {}
        for record in records:
            if record.get("type") not in _TYPES:
                raise DataError(
                    f"record {record.get('id')!r}: type is {record.get('type')!r}, "
                    f"expected one of {', '.join(_TYPES)}."
                )
            question, answer = dialogue(record)
            text = question.replace(IMAGE_MARKER, "").strip()
            answers.setdefault(record["image"], {})[record["type"]] = (text, answer)
        for image, by_type in answers.items():
            if not {"name", "kind"} <= by_type.keys():
                raise DataError(f"picture {image!r}: needs a question for its name and one for its kind.")
        self.facts = [Facts(images / image, by["name"][1], by["kind"][1]) for image, by in answers.items()]
        self.names, self.kinds = (
            list(dict.fromkeys(by_type[type_][0] for by_type in answers.values()))
            for type_ in ("name", "kind")
        )
        about: dict[str, dict[str, None]] = {}
        for by_type in answers.values():
            question, answer = by_type.get("yesno", ("", ""))
            if answer == "yes":
                about.setdefault(by_type["kind"][1], {})[question] = None
        # Kind -> yes/no questions that were answered yes for it.
        self.about = {kind: list(questions) for kind, questions in about.items()}
        self.texts = [*self.names, *self.kinds, *(text for texts in self.about.values() for text in texts)]
        self.words = sorted({word.rstrip("?.") for text in self.texts for word in text.split()})

    def ask(self, facts: Facts, rng: random.Random) -> list[Turns]:
        """Conversations of one turn, and one of two, about one picture: its name, its kind, yes and no."""
        others = [kind for kind in self.about if kind != facts.kind]
        turns = [(self._shorten(rng.choice(self.names), rng), facts.name)]
        for _ in range(2):
            turns.append((self._kind_question(rng), facts.kind))
            other = rng.choice(others)
            turns.append((self._garble(rng.choice(self.about[other]), other, rng), "no"))
            if facts.kind in self.about:
                turns.append((self._garble(rng.choice(self.about[facts.kind]), facts.kind, rng), "yes"))
        first, second = rng.sample(range(len(turns)), 2)
        return [
            ((f"{IMAGE_MARKER}\n{question}", answer), *((turns[second],) if index == first else ()))
            for index, (question, answer) in enumerate(turns)
        ]

    def caption(self, facts: Facts) -> Turns:
        """The picture and what it shows; the kind first, so that it is not read off the name."""
        return ((IMAGE_MARKER, f"{facts.kind}, {facts.name}"),)

    def _kind_question(self, rng: random.Random) -> str:
        """Sometimes a sentence nobody knows: a new first word, and pieces of any question."""
        question = rng.choice(self.kinds)
        if rng.random() >= _GARBLED_SHARE or rng.random() < 0.3:
            return self._garble(question, "", rng)
        group = rng.choice((self.names, self.kinds, self.texts))
        first, *rest = rng.choice(group).split()
        words = [word for word in rest if rng.random() < 0.5]
        for _ in range(rng.randint(1, 3)):
            words.append(_noise(rng) if rng.random() < 0.6 else rng.choice(self.words))
        if rng.random() < 0.5:
            rng.shuffle(words)
        first = _noise(rng).capitalize() if rng.random() < 0.8 else first
        return " ".join([first, *words]) + rng.choice("??. ").strip()

    def _shorten(self, question: str, rng: random.Random) -> str:
        """Sometimes without a word or two."""
        if rng.random() >= _GARBLED_SHARE / 2:
            return question
        return " ".join(word for word in question.split() if rng.random() < 0.8) or question

    def _garble(self, question: str, kind: str, rng: random.Random) -> str:
        """Sometimes with words left out, exchanged or made up; those of `kind` stay."""
        if rng.random() >= _GARBLED_SHARE:
            return question
        share, kept = rng.choice(_GARBLED_WORDS), {"a", "an", *kind.split()} if kind else set()
        words = []
        for word in question.split():
            if word.rstrip("?") in kept or rng.random() >= share:
                words.append(word)
            elif (chance := rng.random()) >= 0.35:
                words.append(rng.choice(self.words) if chance < 0.65 else _noise(rng))
        if rng.random() < 0.15:
            words.insert(rng.randint(0, len(words)), _noise(rng))
        return " ".join(words) or _noise(rng)


def _noise(rng: random.Random) -> str:
    word = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 9)))
    return word.capitalize() if rng.random() < 0.5 else word
