"""Metadata of a GGUF file that somebody else wrote."""

from pathlib import Path
from typing import Any

import gguf

from tinyllava_edge.errors import UsageError


def field_values(path: Path) -> dict[str, Any]:
    """Keys and their values; of an array with over 64 values only its length.

    Raises:
        UsageError: it is no GGUF file that the gguf package reads.
    """
    try:
        reader = gguf.GGUFReader(path)
        return {name: _value(field) for name, field in reader.fields.items()}
    except Exception as error:  # the package's parser raises many types on damaged files
        raise UsageError(
            f"--against {path}: no GGUF file, though it begins as one ({type(error).__name__})."
        ) from None


def _value(field: gguf.ReaderField) -> Any:
    if len(field.data) > 64:
        return len(field.data)
    return field.contents()
