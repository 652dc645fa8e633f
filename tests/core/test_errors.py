"""What is said of somebody else's files fits a screen, and can be written. No model."""

import io
import json
import sys

import pytest

from tinyllava_edge.console import print_json
from tinyllava_edge.errors import MAX_MESSAGE, DataError, DiskFullError, TensorRTError
from tinyllava_edge.printable import printable


@pytest.mark.parametrize("kind", [DataError, DiskFullError, TensorRTError])
def test_an_error_is_never_longer_than_a_screen(kind: type[Exception]) -> None:
    error = kind(f"{'x' * 1_000_000} is no name. Give another one.")
    assert len(str(error)) <= MAX_MESSAGE
    assert str(error).startswith("xxx")
    assert str(error).endswith("xxx is no name. Give another one.")
    assert str(kind("short")) == "short"


def test_half_a_surrogate_pair_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "utf-8")  # as a pipe is, which takes UTF-8 alone
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"name": "caf\u00e9 \udc80"}
    print_json(value)
    stream.write(printable(value["name"]))
    stream.flush()
    line, shown = written.getvalue().decode().split("\n")
    assert json.loads(line) == {"schema": 1, **value}
    assert shown == "caf\u00e9 \\udc80"
