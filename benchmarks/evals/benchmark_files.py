"""Files of public benchmarks: JSON lines with the keys that they must have, and pictures in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import DataError


def read_json_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Read objects, one a line.

    Raises:
        DataError: the file cannot be read, a line is no object, or lacks one of `keys`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not valid JSON ({error}).") from None
        if not isinstance(record, dict) or not set(keys) <= set(record):
            raise DataError(f"{path}: line {number}: expected an object with {', '.join(keys)}.")
        records.append(record)
    if not records:
        raise DataError(f"{path}: holds no questions.")
    return records


def image_in(folder: Path, name: Any) -> Path:
    """A picture of a benchmark.

    Raises:
        DataError: the name leaves the folder.
    """
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"image is {name!r}; expected a path inside {folder}.")
    return folder / name


def unlabelled(path: Path, question_id: Any) -> DataError:
    """The error of a question that no annotation is of."""
    return DataError(f"{path}: question {question_id} is not in the annotation files beside it.")
