"""What `ask` asks, and the lines that it writes: docs/ask.md has their fields.

Here and not in `runtimes`, because the forms of question files are known here, and runtimes import no
benchmarks.
"""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge import __version__
from tinyllava_edge.append_jsonl import AppendedLines, read_lines
from tinyllava_edge.errors import DataError, ResumeError
from tinyllava_edge.picture_given import Picture, is_data_url, is_url
from tinyllava_edge.runtimes.ask_each import Answered
from tinyllava_edge.runtimes.model import Model
from tinyllava_edge.runtimes.picture_arguments import picture_argument

from .question_files import Raw, read_question_file
from .records import PICTURE, listed, read_record, shown_picture, unread_picture
from .tables import TablePicture

Line = dict[str, Any]
_FIELDS = {"index", "id", "picture", "question", "answer", "finish", "timings", "logprobs", "error"}
_QUESTION = ("question", "text", "conversations", "messages")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question about one picture.

    Attributes:
        index: its place, from 0.
        id: as its file has it, or None.
        question: "" where there is none to ask.
        picture: that it is about, or None.
        shown: the picture in its line: as it was given, what is inside a file by its hash.
        error: why it cannot be asked.
    """

    index: int
    id: str | int | None
    question: str
    picture: Picture | None
    shown: str | None
    error: str = ""


def rows_of_pictures(question: str, pictures: Iterable[str]) -> list[Row]:
    """One question about each picture of a command line."""
    return [
        Row(index=index, id=None, question=question, picture=picture_argument(picture), shown=_shown(picture))
        for index, picture in enumerate(pictures)
    ]


def read_rows(path: Path, images: Path | None, question: str | None) -> list[Row]:
    """The rows of a file, in any form that `question_files` knows; a bad one is a row with an error.

    Args:
        path: the file.
        images: folder that names of pictures are relative to; the file's own by default.
        question: of records that have none.

    Raises:
        DataError: the file is of another form, or no record can be asked, or no picture is there.
    """
    folder = path.parent if images is None else images
    rows: list[Row] = []
    for record, raw in enumerate(read_question_file(path).records):
        rows += _rows(raw, record, len(rows), folder, question)
    if all(row.error for row in rows):
        raise DataError(f"{path}: no record can be asked: {listed([row.error for row in rows])}")
    paths = [row.picture for row in rows if isinstance(row.picture, Path)]
    if paths and not any(picture.is_file() for picture in paths):
        raise DataError(
            f"{path}: none of its {len(paths)} pictures is there: {paths[0]}, ... Is {folder} the right "
            "folder (--images)?"
        )
    return rows


def _rows(raw: Raw, record: int, first: int, folder: Path, question: str | None) -> list[Row]:
    nothing: dict[str, Any] = {"id": None, "question": "", "picture": None, "shown": None}
    if isinstance(raw, DataError):
        return [Row(index=first, error=f"record {record}: {raw}", **nothing)]
    given = {name: raw.get(name) for name in ("id", "question_id") if raw.get(name) is not None}
    if question is not None and not any(name in raw for name in _QUESTION):
        raw = {**raw, "question": question}
    try:
        picture, shown = _picture(raw, folder)
        found = read_record({**raw, **dict.fromkeys(PICTURE)}, record, folder)
    except DataError as error:
        found = error
    if isinstance(found, DataError):
        about = {**nothing, "id": next(iter(given.values()), None)}
        return [Row(index=first, error=f"record {record}: {found}", **about)]
    return [
        Row(
            index=first + place,
            id=one.id if given else None,
            question=one.text,
            picture=picture,
            shown=shown,
        )
        for place, one in enumerate(found)
    ]


def _picture(raw: Mapping[str, Any], folder: Path) -> tuple[Picture | None, str | None]:
    """A record's picture: a URL, a path anywhere, or what `eval` knows besides."""
    if fault := unread_picture(raw):
        raise fault
    name = next((raw[key] for key in PICTURE if raw.get(key) is not None), None)
    if isinstance(name, str) and name and not raw.get("stem"):
        return (name, _shown(name)) if is_url(name) else (folder / name, name)
    found = shown_picture({**raw, "image": name}, folder)
    if isinstance(found, TablePicture):
        return found.content, f"sha256:{found.sha256}"
    return found, None if found is None else str(found)


def _shown(picture: str) -> str:
    if not is_data_url(picture):
        return picture
    return f"{picture[:64].split(',')[0]},sha256:{hashlib.sha256(picture.encode()).hexdigest()}"


def line_of(row: Row, found: Answered | None) -> Line:
    """The line of a row; without an answer, of one that cannot be asked."""
    timings = found.timings if found else None
    error = row.error if found is None else str(found.error) if found.error else None
    return {
        "index": row.index,
        "id": row.id,
        "picture": row.shown,
        "question": row.question or None,
        "answer": found.answer if found else None,
        "finish": timings.finish if timings else None,
        "timings": asdict(timings) if timings else None,
        "logprobs": [asdict(entry) for entry in found.logprobs] if found and found.logprobs else None,
        "error": error and error.encode("utf-8", "backslashreplace").decode(),
    }


def lines_mark(path: Path) -> str:
    """Whether every line of a file is one that `ask` wrote: see `atomic_files.Mark`."""
    lines = read_lines(path)
    ours = (lines or not path.stat().st_size) and all(set(line) == _FIELDS for line in lines)
    return "" if ours else "holds other lines than answers of ask"


def depends_on(model: Model, how: Mapping[str, Any]) -> dict[str, Any]:
    """What answers follow from beside the rows: program, bundle, what was opened of it, and settings."""
    settings: dict[str, Any] = {}
    for name, value in how.items():
        settings |= asdict(value) if is_dataclass(value) and not isinstance(value, type) else {name: value}
    return {
        "command": "ask",
        "version": __version__,
        "bundle": model.bundle.manifest_sha256,
        "runtime": model.runtime,
        "vision": model.vision.name,
        "language": model.language.name,
        "context": model.language.context_length,
        **settings,
    }


def known_lines(file: AppendedLines, rows: Sequence[Row]) -> dict[int, Line]:
    """Answers of an earlier run by the index of their row now; what failed is asked again.

    Raises:
        ResumeError: it has answered what is not asked now, or the file holds something else.
    """
    found: dict[str, deque[Line]] = defaultdict(deque)
    for line in file.lines:
        if set(line) != _FIELDS:
            raise ResumeError(f"{file.path}: holds other lines than answers of ask. Remove them.")
        if line["error"] is None:
            found[json.dumps([line["id"], line["picture"], line["question"]])].append(line)
    known = {}
    for row in rows:
        if lines := found.get(json.dumps([row.id, row.shown, row.question or None])):
            known[row.index] = {**lines.popleft(), "index": row.index}
    if others := sum(map(len, found.values())):
        raise ResumeError(
            f"{file.path}: was begun with other rows: {others} of those it has answers to are not asked now. "
            "Give the same again, or --force to begin anew."
        )
    return known
