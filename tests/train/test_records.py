"""A run over the field's other forms: the same batches, bad records known or met, a start's first look."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.own_data import loss_of, own_options, write_messages, write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.train import records
from tinyllava_edge.train.batches import Sample
from tinyllava_edge.train.check import check_data
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.samples import Samples, open_samples
from tinyllava_edge.train.training_options import Tuning

pytestmark = pytest.mark.usefixtures("own_cache")
VIDEO = {
    "id": "film",
    "video": "x.mp4",
    "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A car."}],
}


def _samples(options: FinetuneOptions) -> Samples:
    data, samples = read_data(options), open_samples(Checkpoint(options.source), options)
    samples.conversations = dict(enumerate(data))
    return samples


def test_lines_of_messages_give_the_batches_of_the_list(source: Path, tmp_path: Path) -> None:
    options = own_options(tmp_path, source)
    lines = write_messages(write_own_data(tmp_path))
    one, other = _samples(options), _samples(own_options(tmp_path, source, data=lines))
    expected, found = one.collator(list(one)), other.collator(list(other))
    assert found.pop("faults") == expected.pop("faults") == []
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_each_of_several_pictures_stands_at_its_marker(source: Path, tmp_path: Path) -> None:
    """The rows are those of the pictures encoded alone."""
    write_own_data(tmp_path)
    talk = [{"from": "human", "value": "<image>\n<image>\nSame?"}, {"from": "gpt", "value": "No."}]
    both = {"image": ["1.png", "2.png"], "conversations": talk}
    one = {"image": "4.png", "conversations": [{"from": "human", "value": "What?"}, talk[1]]}
    (tmp_path / "data.json").write_text(json.dumps([both, one]))
    samples, model, seen = _samples(own_options(tmp_path, source)), load_model(Checkpoint(source)), []
    language: Any = model.language_model
    language.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    items = [item for item in samples if isinstance(item, Sample)]
    loss_of(TinyLlavaForTraining(model), samples.collator(items))
    (rows,) = (given["inputs_embeds"] for given in seen)
    for index, ids in enumerate(item.encoded.ids for item in items):
        names = ["1.png", "2.png"] if ids.count(-200) == 2 else ["4.png"]
        start = 0
        for name in names:
            start = ids.index(-200, start) + 1
            at = start - 1 + (samples.num_tokens - 1) * names.index(name)
            alone = model.encode(samples.reader.read(tmp_path / name)[None])[0]
            assert torch.allclose(rows[index, at : at + samples.num_tokens], alone, atol=1e-5)
    (tmp_path / "data.json").write_text(json.dumps([both]))
    captions: dict[str, Any] = {"template": "pretrain", "tune": {"connector": Tuning()}}
    (bad,) = check_data(own_options(tmp_path, source, **captions)).bad
    assert bad.kind == "several pictures"


def test_a_video_is_refused_by_name_or_left_out_and_counted(source: Path, tmp_path: Path) -> None:
    options = own_options(tmp_path, source, save_steps=0)
    good = json.loads(write_own_data(tmp_path).read_text())
    options.data.write_text(json.dumps([*good, VIDEO]))
    with pytest.raises(DataError, match=r"1 bad of 11 records .*record 10 \(id film\): has the key 'video'"):
        finetune(tmp_path / "out", options)
    assert finetune(tmp_path / "out", options, skip_bad=True).left_out == {"unread media": 1}


def test_a_system_text_without_a_place_is_named(source: Path, tmp_path: Path) -> None:
    options = own_options(tmp_path, source, template="pretrain", tune={"connector": Tuning()})
    found = json.loads(write_own_data(tmp_path).read_text())[1]
    options.data.write_text(json.dumps([{**found, "system": "Be brief."}]))
    (bad,) = check_data(options).bad
    assert (bad.kind, "no place for a system text" in bad.reason) == ("system text", True)


def test_a_start_looks_at_the_first_records_and_meets_the_others(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_FIRST_LOOK", 4)
    options = own_options(tmp_path, source, save_steps=0)
    good = json.loads(write_own_data(tmp_path).read_text())
    options.data.write_text("\n".join(map(json.dumps, [*good, VIDEO])))
    with pytest.raises(RecordError, match=r"data.json: record 10 \(id film\): has the key 'video'"):
        finetune(tmp_path / "out", options)
    assert finetune(tmp_path / "out", options, resume=True, skip_bad=True).left_out == {"unread media": 1}
    options.data.write_text("\n".join(map(json.dumps, [VIDEO, *good, VIDEO])))
    with pytest.raises(DataError, match="1 bad of the first 4 records"):
        finetune(tmp_path / "new", options)
    options.data.write_text("\n".join(map(json.dumps, [*good, VIDEO])))
    assert [record.index for record in check_data(options).bad] == [10]
    with pytest.raises(DataError, match="1 bad of 11 records"):
        finetune(tmp_path / "new", options)


def test_the_data_file_may_be_edited_while_a_run_reads_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = own_options(tmp_path, source, save_steps=0)
    write_own_data(tmp_path)
    read = Samples.__getitems__

    def edited(samples: Samples, places: list[int]) -> Any:
        options.data.write_text("[]")
        return read(samples, places)

    monkeypatch.setattr(Samples, "__getitems__", edited)
    finetune(tmp_path / "out", options)
    monkeypatch.undo()
    write_own_data(tmp_path)
    finetune(tmp_path / "again", options)
    first, again = (
        json.loads((tmp_path / name / "tinyllava_edge.json").read_text()) for name in ("out", "again")
    )
    assert first == again
