"""MMBench's tables (pictures inside, as base64) and MME's text files -> records."""

import base64
import binascii
import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import DataError

_MOST_CELL = 256 << 20  # characters; a picture of many megapixels as base64
COLUMNS = {"index", "question"}  # which a table needs; MME's text has no names of columns
_REFERS = re.compile(r"\d{1,9}")  # in the place of a picture: the index of the row that has it
_NOTHING = ("", "nan", "none")  # what LLaVA takes for an empty cell
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class TablePicture:
    """A picture inside a table.

    Attributes:
        sha256: of its bytes, which two rows with the same picture share.
        name: where it stands, for errors.
    """

    sha256: str
    content: bytes = field(repr=False, compare=False)
    name: str = field(compare=False)

    def __str__(self) -> str:
        """Where it stands."""
        return self.name


def read_table(path: Path, text: str) -> dict[str, Any]:
    """Rows with `index`, `image`, `question`, `answer`, and, of several choices, `hint`, `A`, `B`, ...

    Choices are written below the question as LLaVA does. A short number in the place of a picture is the
    index of the row that has it.

    Returns:
        The fields of a `QuestionFile`.

    Raises:
        DataError: it is no table.
    """
    csv.field_size_limit(_MOST_CELL)
    try:
        header, *rows = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter="\t")
    except csv.Error as error:
        raise DataError(f"{path}: no table with tabs ({error}).") from None
    header = [name.strip() for name in header]
    if missing := sorted(COLUMNS - set(header)):
        raise DataError(
            f"{path}: a table without the column {missing[0]!r}; it has {', '.join(header):.200}."
        )
    rows = [row for row in rows if row]
    cells = [dict(zip(header, row, strict=False)) for row in rows]
    encoded = {row.get("index", ""): row.get("image", "") for row in cells}
    several = {index for index, count in Counter(row.get("index", "") for row in cells).items() if count > 1}
    chosen = [letter for letter in LETTERS if letter in header]
    records: list[Any] = []
    for number, (found, row) in enumerate(zip(rows, cells, strict=True), 1):
        try:
            if len(found) != len(header):
                raise DataError(f"{len(found)} columns, expected {len(header)}: {', '.join(header)}.")
            if row["index"] in several:
                raise DataError(f"index {row['index']!r:.80} is that of several rows.")
            records.append(_row(row, chosen, encoded, f"{path}: row {number}"))
        except DataError as error:
            records.append(error)
    return {"records": records, "rule": "mmbench" if chosen else ""}


def _row(
    row: Mapping[str, str], chosen: Sequence[str], encoded: Mapping[str, str], where: str
) -> dict[str, Any]:
    options: dict[str, str] = {}
    for letter in chosen:
        if row[letter].lower() in _NOTHING:
            break
        options[letter] = row[letter]
    hint = row.get("hint", "")
    lines = [] if hint.lower() in _NOTHING else [hint]
    lines += [row["question"], *(f"{letter}. {option}" for letter, option in options.items())]
    if not row["index"].isdecimal():
        raise DataError(f"index is {row['index']!r:.80}, expected a whole number.")
    return {
        "question_id": int(row["index"]),
        "image": _picture(row["image"], encoded, where) if "image" in row else row.get("image_path") or None,
        "question": "\n".join(lines),
        "answer": row.get("answer") or None,
        "type": row.get("category") or "all",
        "options": options,
    }


def _picture(cell: str, encoded: Mapping[str, str], where: str) -> TablePicture | None:
    if _REFERS.fullmatch(cell):
        if cell not in encoded or _REFERS.fullmatch(encoded[cell]):
            raise DataError(f"image is {cell}, expected a picture or the index of a row that has one.")
        cell = encoded[cell]
    if not cell:
        return None
    try:
        content = base64.b64decode("".join(cell.split()), validate=True)  # upstream's decoder skips line ends
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image is no base64 ({error}).") from None
    return TablePicture(hashlib.sha256(content).hexdigest(), content, f"{where}: image")


def read_mme_text(path: Path, text: str) -> dict[str, Any]:
    """MME's lines: picture, question and answer, as its tool has them; or question and answer of one picture.

    The tool's files are called after their category, those beside pictures after their picture.

    Returns:
        The fields of a `QuestionFile`.
    """
    records: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) not in (2, 3, 4):  # the fourth is an answer that a model gave
            records.append(
                DataError(f"line {number} has {len(cells)} columns, expected picture, question, answer.")
            )
        elif len(cells) == 2:
            about = {"image": path.stem, "type": category_of(path), "stem": True}
            records.append({**about, "question": cells[0], "answer": cells[1]})
        else:
            image, question, answer = cells[:3]
            records.append({"image": image, "question": question, "answer": answer, "type": path.stem})
    return {"records": records, "rule": "mme"}


def category_of(path: Path) -> str:
    """MME's category of a picture's text file: the folder that it is in."""
    parent = path.absolute().parent
    return (parent.parent if parent.name == "questions_answers_YN" else parent).name
