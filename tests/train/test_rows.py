"""Where a file's records are: what Python's json finds by parsing all of it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.train import rows as module
from tinyllava_edge.train.rows import Rows, parse_row

MARK = b"\xef\xbb\xbf"


def _values(path: Path) -> list[Any]:
    rows = Rows(path)
    values = [parse_row(row) for row in rows]
    assert [parse_row(rows[index]) for index in range(len(rows))] == values
    return values


def _random_value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(6 if depth else 4)
    if kind == 4:
        return [_random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {_random_text(rng): _random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return [None, rng.random(), rng.randrange(99), _random_text(rng)][kind]


def _random_text(rng: random.Random) -> str:
    return "".join(rng.choices('\\\\\\"{}[],: \n\u00e9a', k=rng.randrange(12)))


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 18])
def test_a_list_is_cut_where_its_own_commas_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, block: int
) -> None:
    """Whatever its strings hold, and wherever a block of the file ends."""
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = random.Random(seed)
    expected = [_random_value(rng) for _ in range(rng.randrange(1, 9))]
    text = json.dumps(expected, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
    path = tmp_path / "data.json"
    path.write_bytes(
        rng.choice([b"", MARK]) + rng.choice([b"", b" \r\n"]) + text.encode() + b"\n" * rng.randrange(3)
    )
    assert _values(path) == expected


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n  \n"])
@pytest.mark.parametrize("block", [3, 1 << 18])
def test_a_record_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: bytes, end: bytes, block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    expected = [{"id": index, "text": "\u2028\n" * index} for index in range(5)]
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in expected]
    for content in (end.join(lines), end.join(lines) + end, end + end.join(lines) + b"\n" + b" " * 50):
        (tmp_path / "data").write_bytes(mark + content)
        assert _values(tmp_path / "data") == expected


def test_a_line_that_is_no_json_is_that_records_fault(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(
        b'{"id": 1}\n{"id": \n{"id": "\xff"}\n\xef\xbb\xbf{"id": 4}\n{"id": 5\n'
        b'{"id": 6, "id": 7}\n{"id": 8, "id": 8}'
    )
    rows = Rows(tmp_path / "data")
    assert [parse_row(rows[index])["id"] for index in (0, 3, 6)] == [1, 4, 8]
    for index, reason in (
        (1, "not valid JSON"),
        (2, "not UTF-8"),
        (4, "not valid JSON .*whole"),
        (5, "'id' is there twice"),
    ):
        with pytest.raises(RecordError, match=reason):
            parse_row(rows[index])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "list of objects.*found nothing"),
        (b"  \n", "list of objects.*found nothing"),
        (b"[]", "list is empty"),
        (b"[ \n]", "list is empty"),
        (b'"text"', "list of objects.*found '\"text\"'"),
        (b"1", "list of objects"),
        (b"\xff\xfe[\x00]\x00", "not UTF-8 but UTF-16"),
        (b"\xfe\xff\x00[", "not UTF-8 but UTF-16"),
        (b'[{"id": 1}, {"id": 2', "not valid JSON: the list does not end after record 0"),
        (b'[{"id": 1}, {"id": 2}', "does not end after record 0"),
        (b'[{"id": 1}, {"id: 2}, {"id": 3}]', "not valid JSON: the list does not end"),
        (b'[{"id": 1}, {"id": 2]}, {"id": 3}, {"id": "a', "record 1, at byte 11: not valid JSON"),
        (b'[{"id": 1}]\n[{"id": 2}]', "more after the list, which ends at byte 10"),
        (b"[" * 100_000, "does not end"),
        (b'{\n "data": [\n  {"id": 1}\n ]\n}', "one a line; its first line is not valid JSON"),
        (b"{", "one a line; its first line is not valid JSON"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        Rows(tmp_path / "data")
    with pytest.raises(DataError, match="no such file"):
        Rows(tmp_path / "absent.json")


@pytest.mark.parametrize("gap", [" ", ",,", ", 7,", ', "a, [b",', ", [1, [2]],"])
def test_nothing_between_two_objects_is_lost(tmp_path: Path, gap: str) -> None:
    """It is an element, or part of one that is not JSON."""
    (tmp_path / "data").write_text('[{"id": 1}' + gap + '{"id": 2}]')
    rows = Rows(tmp_path / "data")
    assert sum(map(len, rows)) + len(rows) + 1 == (tmp_path / "data").stat().st_size
    assert len(rows) == (1 if gap == " " else 3)


def test_a_file_that_changes_is_refused_and_its_copy_is_not(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"id": 1}, 2]')
    rows = Rows(path)
    copy = rows.copied_to(tmp_path / "copy")
    path.write_text('[{"id": 12}]')
    with pytest.raises(DataError, match="changed while it is read"):
        rows[0]
    with pytest.raises(DataError, match="changed"):
        rows.copied_to(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [parse_row(row) for row in copy] == [{"id": 1}, 2]
