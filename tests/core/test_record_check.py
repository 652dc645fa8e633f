"""What a look at every record finds, remembers and prints."""

import _thread
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tinyllava_edge import record_check
from tinyllava_edge.cache import cache_folder
from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.picture_check import PictureCheck
from tinyllava_edge.record_check import (
    CheckReport,
    check_key,
    check_records,
    print_report,
    read_report,
)

CROPPED = Preprocessing(
    aspect="square",
    resize="shortest_edge",
    size=224,
    crop=224,
    resample=3,
    rescale_factor=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, and pictures that need not be two seconds old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(record_check, "SETTLED_AFTER_NS", 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`data.json` and 200 pictures: one cut short, one that is text, one that is not there."""
    for index in range(200):
        Image.new("RGB", (40, 30), (index, 0, 0)).save(tmp_path / f"{index}.jpg")
    content = (tmp_path / "17.jpg").read_bytes()
    (tmp_path / "17.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "150.jpg").write_text("<html>")
    (tmp_path / "199.jpg").unlink()
    (tmp_path / "data.json").write_text("[]")
    return tmp_path / "data.json"


class Look:
    """Opens a picture; counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self._open = PictureCheck()

    def __call__(self, path: Path) -> Sequence[tuple[str, str]]:
        self.calls += 1
        self._open(path)
        return [("dark", "all of it")] if path.stem == "0" else []


def _check(data: Path, look: Look, **facts: int) -> CheckReport:
    paths = [data.parent / f"{index}.jpg" for index in range(200)]
    key = check_key(data, paths, facts)
    return check_records(data, paths, look, name="id{}".format, key=key)


def test_all_bad_records_are_found_at_once_in_the_order_of_the_file(data: Path) -> None:
    report = _check(data, Look())
    assert [(r.index, r.id, r.kind) for r in report.bad] == [
        (17, "id17", "damaged picture"),
        (150, "id150", "damaged picture"),
        (199, "id199", "missing picture"),
    ]
    assert all(str(data.parent / f"{r.index}.jpg") in r.reason and r.file == str(data) for r in report.bad)
    assert [(r.index, r.kind) for r in report.noted] == [(0, "dark")]
    assert (report.records, report.cached) == (200, False)


def test_what_was_found_is_remembered_until_data_pictures_or_facts_change(data: Path) -> None:
    look, again = Look(), Look()
    first = _check(data, look)
    second = _check(data, again)
    assert (second.bad, second.noted, second.cached, again.calls) == (first.bad, first.noted, True, 0)
    assert not _check(data, again, limit=512).cached
    assert (look.calls, again.calls) == (200, 200)
    Image.new("RGB", (40, 30)).save(data.parent / "17.jpg")
    assert [r.index for r in _check(data, Look()).bad] == [150, 199]
    (data.parent / "199.jpg").write_bytes((data.parent / "0.jpg").read_bytes())
    assert [r.index for r in _check(data, Look()).bad] == [150]
    assert _check(data, Look()).cached
    data.write_text("[1]")
    assert not _check(data, Look()).cached


def test_a_report_that_is_damaged_or_open_to_others_is_not_believed(data: Path) -> None:
    look = Look()
    _check(data, look)
    (kept,) = (cache_folder() / "checks").iterdir()
    content = kept.read_text()
    for text in ("", "[]", "{", '{"bad": 1}', content.replace('"index"', '"indexes"')):
        kept.write_text(text)
        assert not _check(data, look).cached
    kept.write_text(content)
    kept.chmod(0o644)
    assert not _check(data, look).cached
    assert kept.stat().st_mode & 0o777 == 0o600
    assert _check(data, look).cached


def test_old_reports_make_room_for_new_ones(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_check, "_REMEMBERED", 2)
    keys = [check_key(data, [], {"limit": limit}) for limit in range(4)]
    for key in keys:
        check_records(data, [], Look(), name=str, key=key)
        time.sleep(0.01)
    assert [read_report(key) is not None for key in keys] == [False, False, True, True]


def test_ctrl_c_stops_the_look_soon_and_nothing_is_remembered(data: Path) -> None:
    seen = []

    def look(number: int) -> Sequence[tuple[str, str]]:
        seen.append(number)
        time.sleep(0.001)
        if number == 50:
            _thread.interrupt_main()
        return []

    key = check_key(data, [], {})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    with pytest.raises(KeyboardInterrupt):
        check_records(data, range(20_000), look, name=str, key=key)
    signal.signal(signal.SIGINT, before)
    assert 50 < len(seen) < 1000
    assert read_report(key) is None


def test_a_picture_is_opened_once_and_as_the_preprocessing_takes_it(tmp_path: Path) -> None:
    Image.new("RGB", (16_000, 8)).save(tmp_path / "strip.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    PictureCheck()(tmp_path / "strip.png")
    check = PictureCheck(CROPPED)
    check(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    check(tmp_path / "a.png")
    for _ in range(2):
        with pytest.raises(RecordError, match=r"strip.png: .*too long a strip"):
            check(tmp_path / "strip.png")


def test_the_report_is_printed_by_file_and_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def look(number: int) -> Sequence[tuple[str, str]]:
        if number == 1:
            raise DataError("expected\nless \x1b[2J")
        if number == 2:
            raise RecordError("no answer left", "512 positions")
        return [("cut", "by 3")] if number else []

    report = check_records(tmp_path / "my.json", range(4), look, name="a\ud800cd".__getitem__)
    print_report(report, as_json=False)
    where = tmp_path / "my.json"
    assert capsys.readouterr().out.splitlines() == [
        f"{where}: 4 records checked, 2 bad (1 x bad record, 1 x no answer left), 1 to note (1 x cut)",
        f"{where}: record 1 (id \\ud800): bad record: expected less \\x1b[2J",
        f"{where}: record 2 (id c): no answer left: 512 positions",
        f"{where}: record 3 (id d): cut: by 3",
    ]
    print_report(report, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"] == {"bad": {"bad record": 1, "no answer left": 1}, "noted": {"cut": 1}}
    assert [(r["index"], r["kind"]) for r in printed["bad"]] == [(1, "bad record"), (2, "no answer left")]


def test_where_there_is_no_terminal_lines_tell_how_far_it_is(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tinyllava_edge.console._FIRST_LINE_S", 0.01)
    _check(data, Look())
    assert "check data.json: " in (said := capsys.readouterr().err)
    assert " of 200, 0 s\n" in said
