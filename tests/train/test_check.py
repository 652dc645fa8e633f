"""`train --check`: what it finds, what it prints, and what a start makes of it."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from tests.train.own_data import own_options, write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import DataError
from tinyllava_edge.record_check import has_report
from tinyllava_edge.train.check import _command, _facts, check_data, known_bad
from tinyllava_edge.train.cli import train
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.options import FinetuneOptions, parse_tune
from tinyllava_edge.train.parts import Parts
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.samples import open_samples

pytestmark = pytest.mark.usefixtures("own_cache")
LIMIT = 512  # tokenizer_model_max_length of tests.tiny


@pytest.fixture
def options(source: Path, tmp_path: Path) -> FinetuneOptions:
    """Ten good records, and one of every kind that is not."""
    write_own_data(tmp_path)
    records = json.loads((tmp_path / "data.json").read_text())
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:40])
    for question, answer, image in (
        ("<image>\nWhat?", "A.", "cut.png"),
        ("<image>\nWhat?", "A.", "x" * 300),  # longer than a name may be
        ("What?", "It is <image>.", "1.png"),
        ("word " * 700, "A.", None),
        ("What?", "word " * 700, None),
        ("What? \ud800", "A.", None),
    ):
        records.append(_record(f"r{len(records)}", question, answer, image))
    records += [{"id": "r16", "conversations": [{"from": "narrator", "value": "Hi"}] * 2}, 7]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return own_options(tmp_path, source)


def _record(id_: str, question: str, answer: str, image: str | None) -> dict[str, Any]:
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id_, "conversations": messages} | ({"image": image} if image else {})


KINDS = {
    10: "damaged picture",
    11: "missing picture",
    12: "picture markers",
    13: "no answer left",
    15: "not Unicode",
    16: "unknown role",
    17: "malformed record",
}


def test_every_kind_of_bad_record_is_found_and_what_is_cut_is_counted(options: FinetuneOptions) -> None:
    report = check_data(options)
    assert {r.index: r.kind for r in report.bad} == KINDS
    (cut,) = report.noted
    assert (cut.index, cut.id, cut.kind) == (14, "r14", "cut")
    positions = int(cut.reason.split()[0])
    assert f"the last {positions - LIMIT} go" in cut.reason
    assert check_data(options).cached


def test_a_start_says_what_was_not_checked_and_refuses_what_was_found(
    options: FinetuneOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, samples = read_data(options), open_samples(Checkpoint(options.source), options)
    assert known_bad(data, samples, options).keys() == {11, 12, 16, 17}
    line = capsys.readouterr().err
    assert "not checked" in line
    assert f"train --check --data {options.data} --images {options.images} --from {options.source}" in line
    with pytest.raises(DataError, match=r"4 bad of 18 records .*record 11 \(id r11\).*--check.*--skip-bad"):
        finetune(tmp_path / "out", options)
    check_data(options)
    capsys.readouterr()
    assert known_bad(data, samples, options).keys() == set(KINDS)
    assert not capsys.readouterr().err
    keep = [
        record
        for index, record in enumerate(found.record for found in data)
        if index not in KINDS or index in (10, 13)
    ]
    options.data.write_text(json.dumps(keep))
    check_data(options)
    with pytest.raises(DataError, match=r"2 bad of 13 records \(1 x damaged picture, 1 x no answer left\)"):
        finetune(tmp_path / "out", options)
    assert not (tmp_path / "out.work").exists()


def test_captions_need_pictures(options: FinetuneOptions) -> None:
    options.data.write_text(json.dumps([found.record for found in read_data(options)][:5]))
    changes: dict[str, Any] = {"template": "pretrain", "tune": parse_tune("connector")}
    report = check_data(own_options(options.images, options.source, **changes))
    assert {r.index: r.kind for r in report.bad} == {0: "no picture", 3: "no picture"}


def test_parts_are_checked_as_the_model_that_will_be_made_of_them(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    """The weights are not needed: of a tower and a language model, config and small files."""
    raw = json.loads((options.source / "config.json").read_text())
    for name, part in (("tower", "vision_config"), ("llm", "text_config")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(raw[part]))
        for path in options.source.iterdir():
            if path.suffix != ".safetensors" and path.name != "config.json":
                shutil.copy(path, tmp_path / name)
    parts = Parts(tower=tmp_path / "tower", connector="mlp2x_gelu", llm=tmp_path / "llm")
    report = check_data(own_options(tmp_path, tmp_path / "none", parts=parts))
    without = {index: kind for index, kind in KINDS.items() if index != 13}  # 1024 positions
    assert {r.index: r.kind for r in report.bad if r.index != 13} == without
    assert not (tmp_path / "none").exists()


def test_the_command_lists_all_and_ends_with_1_where_something_is_bad(
    options: FinetuneOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(**more: Any) -> tuple[int, str]:
        with pytest.raises(typer.Exit) as ended:
            train(data=[options.data], source=str(options.source), check=True, **more)
        return ended.value.exit_code, capsys.readouterr().out

    code, printed = check()
    first, *lines = printed.splitlines()
    assert code == 1
    assert f"{options.data}: 18 records checked, 7 bad (" in first
    assert [int(line.split("record ")[1].split()[0]) for line in lines] == [*KINDS, 14]
    code, printed = check(json=True)
    assert code == 1
    assert json.loads(printed)["cached"]
    assert {r["index"]: r["kind"] for r in json.loads(printed)["bad"]} == KINDS
    options.data.write_text(json.dumps([found.record for found in read_data(options)][:10]))
    assert check()[0] == 0
    options.data.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        train(data=[options.data], source=str(options.source), check=True)


def test_a_mended_picture_is_looked_at_again(options: FinetuneOptions) -> None:
    check_data(options)
    Image.new("RGB", (20, 20)).save(options.images / "cut.png")
    assert {r.index for r in check_data(options).bad} == KINDS.keys() - {10}


def test_the_line_that_a_start_says_checks_what_it_trains_on(source: Path, tmp_path: Path) -> None:
    """Its maximum length decides what is cut, and which answers are left."""
    write_own_data(tmp_path)
    options = own_options(tmp_path, source, model_max_length=400)
    words = shlex.split(_command(options))
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    samples = open_samples(Checkpoint(source), options)
    data = read_data(options)
    assert has_report(data.files[0].path, _facts(data, samples))
