"""A bad record that a run meets: left out, or the end of a run that goes on once it is mended or dropped."""

import hashlib
import itertools
import json
import os
import shutil
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.train.own_data import LORA, changed, own_options, write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError, RecordError, UsageError
from tinyllava_edge.train import training_log
from tinyllava_edge.train.batches import Fault, Sample
from tinyllava_edge.train.check import check_data
from tinyllava_edge.train.conversations import BadRow, Conversation
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.left_out import LeftOut, mend
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.run_records import Numbered, open_records
from tinyllava_edge.train.samples import open_samples
from tinyllava_edge.train.trainer import meet

pytestmark = pytest.mark.usefixtures("own_cache")
BAD = 7  # number of the record whose picture is damaged
SEED = 2  # with which it comes in the third batch
PAIRS = [pair for pair in itertools.product(range(10), repeat=2) if pair[0] != pair[1]]
STEPS = 8  # two epochs of ten records, three at a time


def _write(folder: Path, source: Path) -> FinetuneOptions:
    """Ten records of which one has a damaged picture."""
    folder.mkdir()
    write_own_data(folder)
    _damage(folder / f"{BAD}.png")
    return own_options(folder, source, num_train_epochs=2, save_steps=0, seed=SEED)


def _damage(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:40])


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts, and that leaves the record out."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = finetune(folder / "out", _write(folder / "data", source), skip_bad=True)
    assert outcome.left_out == {"damaged picture": 1}
    assert outcome.steps == STEPS
    return folder / "out"


@pytest.fixture(scope="module")
def stopped(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the record has ended."""
    folder = tmp_path_factory.mktemp("stopped")
    options = _write(folder / "data", source)
    with pytest.raises(RecordError, match=r"data.json: record 7 \(id r7\): .*7.png: ") as caught:
        finetune(folder / "out", options)
    assert "--resume; or" in str(caught.value)
    assert "--resume --skip-bad" in str(caught.value)
    return folder


@pytest.fixture
def copied(stopped: Path, source: Path, tmp_path: Path) -> FinetuneOptions:
    shutil.copytree(stopped, tmp_path / "run")
    return own_options(tmp_path / "run" / "data", source, num_train_epochs=2, save_steps=0, seed=SEED)


def _assert_same(out: Path, whole: Path) -> None:
    lines = [
        [(line["step"], line["loss"]) for line in read_lines(path / "training_log.jsonl")]
        for path in (out, whole)
    ]
    assert lines[0] == lines[1]
    for name in ("model.safetensors", "tinyllava_edge.json"):
        hashes = {hashlib.sha256((path / name).read_bytes()).hexdigest() for path in (out, whole)}
        assert len(hashes) == 1, name


def test_what_was_left_out_is_in_the_sidecar(whole: Path) -> None:
    sidecar = json.loads((whole / "tinyllava_edge.json").read_text())
    (record,) = sidecar["left_out"]
    assert (record["id"], record["kind"]) == ("r7", "damaged picture")
    assert len(record["sha256"]) == len(sidecar["data_sha256"]) == 64


def test_a_run_that_ends_at_a_bad_record_keeps_every_step_before_it(stopped: Path) -> None:
    steps = [line["step"] for line in read_lines(stopped / "out.work" / "training_log.jsonl")]
    assert 0 < len(steps) < STEPS // 2
    assert (stopped / "out.work" / f"checkpoint-{steps[-1]}" / "seal.json").exists()
    assert not (stopped / "out").exists()


def test_it_goes_on_without_the_record(copied: FinetuneOptions, whole: Path) -> None:
    out = copied.images.parent / "out"
    outcome = finetune(out, copied, resume=True, skip_bad=True)
    assert outcome.resumed_at > 0
    _assert_same(out, whole)
    assert finetune(out, copied, resume=True).resumed_at == STEPS  # finished: nothing is asked of the data


def test_it_goes_on_after_the_record_was_dropped_from_the_data(copied: FinetuneOptions, whole: Path) -> None:
    out, records = copied.images.parent / "out", json.loads(copied.data.read_text())
    copied.data.write_text(json.dumps(records[:BAD] + records[BAD + 1 :], indent=1))
    outcome = finetune(out, copied, resume=True)
    assert outcome.resumed_at > 0
    _assert_same(out, whole)


def test_it_goes_on_after_the_picture_was_mended(
    copied: FinetuneOptions, source: Path, tmp_path: Path
) -> None:
    good = _write(tmp_path / "good", source)
    write_own_data(good.images)
    finetune(tmp_path / "whole", good)
    shutil.copy(good.images / f"{BAD}.png", copied.images / f"{BAD}.png")
    out = copied.images.parent / "out"
    assert finetune(out, copied, resume=True).resumed_at > 0
    _assert_same(out, tmp_path / "whole")


def _kill_at(step: int, out: Path, options: FinetuneOptions) -> None:
    """In a process of its own: SIGKILL as soon as the log has the step's line."""

    def write_and_die(log: training_log.TrainingLog, **values: Any) -> None:
        write(log, **values)
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    write = training_log.TrainingLog.write
    training_log.TrainingLog.write = write_and_die  # type: ignore[method-assign, assignment]
    finetune(out, options, resume=True, skip_bad=True)


def test_kills_leave_a_run_that_leaves_a_record_out_bit_for_bit_the_same(
    source: Path, whole: Path, tmp_path: Path, forks: ForkServerContext
) -> None:
    """Before the record was met, and after it."""
    options, out = changed(_write(tmp_path / "data", source), save_steps=2), tmp_path / "out"
    for step in (1, STEPS - 1):
        process = forks.Process(target=_kill_at, args=(step, out, options))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (tmp_path / "out.work" / "left_out.jsonl").exists() == (step > 1)
    assert finetune(out, options, resume=True, skip_bad=True).resumed_at == STEPS - 2
    _assert_same(out, whole)


def test_what_a_check_has_found_is_left_out_before_the_first_step(source: Path, tmp_path: Path) -> None:
    options = changed(_write(tmp_path / "data", source), num_train_epochs=1)
    check_data(options)
    with pytest.raises(DataError, match="1 bad of 10 records"):
        finetune(tmp_path / "out", options)
    outcome = finetune(tmp_path / "out", options, skip_bad=True)
    assert (outcome.steps, outcome.left_out) == (3, {"damaged picture": 1})


def test_batches_do_not_depend_on_when_a_record_turns_out_to_be_bad(source: Path, tmp_path: Path) -> None:
    """Of two at a time, six bad ones: some batches have none but bad ones."""
    options = _write(tmp_path / "data", source)
    for bad in (1, 2, 4, 5, 8):
        _damage(options.images / f"{bad}.png")
    data, numbers = read_data(options), (1, 2, 4, 5, BAD, 8)

    def batches(left_out: LeftOut) -> list[list[list[int]]]:
        samples = open_samples(Checkpoint(source), options)
        samples.conversations = {n: data[n] for n in range(10)}
        samples.left_out = left_out
        found = []
        for places in PAIRS:
            items = samples.__getitems__(list(places))
            for item in items:
                if isinstance(item, Fault):
                    meet(samples, item)
            found.append([item.encoded.ids for item in items if isinstance(item, Sample)])
        return found

    met, known = LeftOut(skip=True), LeftOut(skip=True)
    for number in numbers:
        known.add(number, "", "damaged picture", "")
    found = batches(met)
    assert found == batches(known)
    assert met.counts == {"damaged picture": len(numbers)}
    assert {len(ids) for ids in found} == {1, 2}
    samples = open_samples(Checkpoint(source), options)
    samples.conversations, samples.left_out = {number: data[number] for number in numbers}, known
    assert samples.__getitems__([0]) == []
    records = json.loads(options.data.read_text())
    options.data.write_text(json.dumps([records[number] for number in (1, 2, 4)]))
    with pytest.raises(DataError, match="no record is left"):
        finetune(tmp_path / "out", options, skip_bad=True)


# What becomes of the ten records' ids, and what is said where that is other data.
TOLERATED = [
    ("0123456789", "0123456789"),
    ("0123456789", "012345689"),  # the bad one dropped
    ("0123456789", "01234568x"),  # and the last bad one mended
    ("0123456789", "0123456x89"),  # mended
    ("0123456789", "01234568"),  # two dropped
]
REFUSED = [
    ("12345678", r"record 0 \(id 0\) is gone or changed"),
    ("0x23456789", r"record 1 \(id 1\) is gone or changed"),
    ("01234567x89", r"record 8 \(id x\) is new|record 8 \(id 8\) is gone"),
    ("0123456789x", r"record 10 \(id x\) is new"),
    ("1023456789", r"record 0 \(id 0\) is gone"),
    ("x", r"record 0 \(id 0\) is gone"),
]


def _open(work: Path, source: Path, ids: str, bad: str = "79") -> Numbered:
    """Open the records of a run whose bad ones are known by looking at them."""

    def look(conversation: Conversation | BadRow) -> None:
        if conversation.id in bad:
            raise RecordError("damaged picture", "damaged")

    messages = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    work.mkdir(exist_ok=True)
    (work.parent / "data.json").write_text(json.dumps([{"id": i, "conversations": messages} for i in ids]))
    return open_records(work, read_data(own_options(work.parent, source)), {}, look, skip=False)[0]


@pytest.mark.parametrize(("before", "after"), TOLERATED)
def test_bad_records_may_be_mended_or_dropped(tmp_path: Path, before: str, after: str) -> None:
    _open(tmp_path / "work", tmp_path, before)
    found = _open(tmp_path / "work", tmp_path, after)
    assert list(found) == list(range(10))
    kept = {number: c.id for number, c in found.items() if c is not None}
    assert "".join(kept.values()) == after
    assert all(kept[int(i)] == i for i in after if i != "x")


def test_a_line_cut_short_is_gone_before_the_next_is_written(tmp_path: Path) -> None:
    _open(tmp_path / "work", tmp_path, "0123456789")
    (tmp_path / "work" / "left_out.jsonl").write_text('{"number": 6, "id"')
    _open(tmp_path / "work", tmp_path, "012345689")
    [line] = (tmp_path / "work" / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "7"


@pytest.mark.parametrize(("after", "message"), REFUSED)
def test_other_data_are_refused_by_name(tmp_path: Path, after: str, message: str) -> None:
    _open(tmp_path / "work", tmp_path, "0123456789")
    with pytest.raises(UsageError, match=f"other data .*{message}"):
        _open(tmp_path / "work", tmp_path, after)
    assert len(_open(tmp_path / "work", tmp_path, "0123456789")) == 10


def test_what_is_left_out_stays_so_and_a_line_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "left_out.jsonl"
    first = LeftOut(path, skip=True)
    first.add(3, "r3", "damaged picture", "aa")
    first.add(5, "r5", "no answer left", "bb", "stopped")
    with path.open("a") as file:
        file.write('{"number": 6, "id"')
    cut = path.read_bytes()
    second = LeftOut(path)
    assert 3 in second
    assert 5 not in second
    assert second.hashes == {"aa"}
    assert path.read_bytes() == cut  # another process may be writing it
    mend(path)
    second.add(1, "r1", "damaged picture", "cc", "before")
    third = LeftOut(path)
    assert (third.before, third.counts) == ({1}, {"damaged picture": 2})
    path.write_text("nonsense\n")
    with pytest.raises(UsageError, match="damaged"):
        LeftOut(path)


def test_a_first_record_that_is_bad_and_was_not_met_does_not_end_a_run_of_lora(
    source: Path, tmp_path: Path
) -> None:
    """A record shows that merging changes nothing: the first one that is good."""
    data = write_own_data(tmp_path)
    records = json.loads(data.read_text())
    records[0] = {**records[1], "id": "r0", "image": "0.png"}
    data.write_text(json.dumps(records))
    (tmp_path / "0.png").write_bytes(b"no picture")
    outcome = finetune(tmp_path / "out", own_options(tmp_path, source, tune=LORA, max_steps=1, seed=SEED))
    assert outcome.left_out == {}
    assert json.loads((tmp_path / "out" / "tinyllava_edge.json").read_text())["merge_error"] <= 1e-5
