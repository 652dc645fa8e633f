"""Several data files: what an epoch has of each, from which folder, and how a run knows them again."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.train.own_data import own_options, write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError, RecordError, UsageError
from tinyllava_edge.record_check import BadRecord
from tinyllava_edge.train.check import check_data, known_bad
from tinyllava_edge.train.data import PictureReader
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.mix import DataFile, draw, pair_files, shares
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.recipe import open_recipe
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.run_records import Numbered, open_records
from tinyllava_edge.train.sampler import EpochSampler
from tinyllava_edge.train.samples import Samples, open_samples

pytestmark = pytest.mark.usefixtures("own_cache")


def _files(*weights: float) -> list[DataFile]:
    return [DataFile(path=Path(f"{at}.json"), images=Path(), weight=w) for at, w in enumerate(weights)]


def test_a_weight_is_a_seeded_share_or_repeats() -> None:
    files, counts = _files(2, 0.5, 1.25), [3, 10, 8]
    numbers = draw(files, counts, 0).tolist()
    assert numbers[:6] == [0, 1, 2, 0, 1, 2]
    half, rest = numbers[6:11], Counter(numbers[11:])
    assert len(set(half)) == 5
    assert set(half) < set(range(3, 13))
    assert set(rest) == set(range(13, 21))
    assert sorted(rest.values()) == [1] * 6 + [2] * 2
    assert draw(files, counts, 0).tolist() == numbers
    assert draw(files, counts, 1).tolist() != numbers
    assert [share["samples"] for share in shares(files, counts, numbers)] == [6, 5, 10]
    assert draw(_files(1), [4], 7).tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"1\.json: weight 0\.01 leaves none of its 10 records"):
        draw(_files(1, 0.01), [3, 10], 0)


def test_each_file_has_a_folder_and_a_weight() -> None:
    def paired(*given: Any) -> list[tuple[str, str, float]]:
        return [(str(file.path), str(file.images), file.weight) for file in pair_files(*given)]

    a, b = Path("x/a.json"), Path("b.json")
    assert paired([a, b], [Path("p"), Path("q")], "1,0.5") == [("x/a.json", "p", 1), ("b.json", "q", 0.5)]
    assert paired([a, b], [Path("p")], None) == [("x/a.json", "p", 1), ("b.json", "p", 1)]
    assert paired([a, b], [], None) == [("x/a.json", "x", 1), ("b.json", ".", 1)]
    for given, said in (
        (([a, b], [b, b, b], None), "--images is there 3 times, --data 2"),
        (([a, b], [], "1"), "--mix 1: expected 2 numbers"),
        (([a, b], [], "1,x"), "--mix 1,x: expected 2 numbers"),
        (([a, b], [], "1,nan"), "b.json: weight nan, expected above 0"),
        (([a, b], [], "0,1"), "a.json: weight 0, expected above 0"),
        (([], [a], None), "--images and --mix are of --data"),
    ):
        with pytest.raises(UsageError, match=said):
            pair_files(*given)


def test_a_recipe_names_its_data_from_its_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: lora\nmix: [{data: a.json, images: p}, {data: q/b.json, weight: 0.5}]")
    first, second = open_recipe(str(path)).mix
    assert (first.path, first.images, first.weight) == (tmp_path / "a.json", tmp_path / "p", 1)
    assert (second.path, second.images, second.weight) == (tmp_path / "q/b.json", tmp_path / "q", 0.5)
    assert open_recipe("lora").mix == []
    for text, said in (
        ("mix: [{data: a.json, wieght: 1}]", r"mix\.0\.wieght: .*'weight'"),
        ("mix: [{data: a.json, weight: 0}]", r"mix\.0\.weight: .*greater than 0"),
        ("mix: []", "mix: "),
        ("families: {llama: {mix: [{data: a.json}]}}", "families.llama: mix is the same"),
    ):
        path.write_text(f"extends: lora\n{text}")
        with pytest.raises(UsageError, match=said):
            open_recipe(str(path))


@pytest.fixture
def two(source: Path, tmp_path: Path) -> FinetuneOptions:
    """Two files of ten records, whose pictures have the same names in folders of their own."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_own_data(tmp_path / name)
    options = own_options(
        tmp_path / "a", source, num_train_epochs=2, save_steps=0, per_device_train_batch_size=5
    )
    more = DataFile(path=tmp_path / "b" / "data.json", images=tmp_path / "b", weight=0.5)
    return replace(options, more=(more,))


def test_a_run_has_of_each_file_what_was_asked_and_is_shuffled_once_an_epoch(
    two: FinetuneOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    pictures: set[Path] = set()
    orders: list[list[int]] = []
    read, open_picture, order = Samples._read, PictureReader.read, EpochSampler.__iter__

    def counted(samples: Samples, place: int) -> Any:
        seen.append(samples.numbers[place])
        return read(samples, place)

    def opened(reader: PictureReader, path: Path) -> Any:
        pictures.add(path)
        return open_picture(reader, path)

    def ordered(sampler: EpochSampler) -> Any:
        orders.append(list(order(sampler)))
        return iter(orders[-1])

    with (
        patch.object(Samples, "_read", counted),
        patch.object(PictureReader, "read", opened),
        patch.object(EpochSampler, "__iter__", ordered),
    ):
        done = finetune(tmp_path / "out", two)
    expected = draw(two.files, [10, 10], 0).tolist()
    assert done.steps == 2 * 3  # 15 samples, 5 a step
    assert [sorted(order) for order in orders] == [list(range(15))] * 2
    assert orders[0] != orders[1]
    assert Counter(seen[:30]) == Counter(expected * 2)
    assert {path.parent.name for path in pictures} == {"a", "b"}
    assert f"{two.more[0].path}: 10 records, weight 0.5: 5 samples an epoch" in capsys.readouterr().err
    sidecar = json.loads((tmp_path / "out" / "tinyllava_edge.json").read_text())
    assert (sidecar["mix"], sidecar["data"]) == ([1.0, 0.5], "data.json, data.json")


def test_what_is_bad_is_named_by_its_file(two: FinetuneOptions, tmp_path: Path) -> None:
    (tmp_path / "b" / "4.png").unlink()
    said = r"1 bad of 20 records \(1 x missing picture\): .*b/data.json: record 4 \(id r4\)"
    with pytest.raises(DataError, match=said):
        finetune(tmp_path / "out", two)
    report = check_data(two)
    assert [(Path(bad.file).parent.name, bad.index) for bad in report.bad] == [("b", 4)]
    assert (report.records, report.cached, check_data(two).cached) == (20, False, True)
    with pytest.raises(DataError, match=said):  # as the check remembers it
        finetune(tmp_path / "out", two)
    samples = open_samples(Checkpoint(two.source), two)
    third = DataFile(path=write_own_data(tmp_path), images=tmp_path)
    several = replace(two, more=(*two.more, third))
    (tmp_path / "5.png").unlink()
    assert known_bad(read_data(several), samples, several).keys() == {14, 25}  # checked, seen at once
    tiny = replace(two, more=(replace(two.more[0], weight=0.01),))
    with pytest.raises(UsageError, match="leaves none"):
        finetune(tmp_path / "out", tiny)
    assert not (tmp_path / "out.work").exists()


def test_a_run_knows_both_files_again_where_a_bad_record_is_mended(
    two: FinetuneOptions, tmp_path: Path
) -> None:
    def look(record: Any) -> None:
        if record.file.parent.name == "b" and record.index == 4:
            raise RecordError("damaged picture", "damaged")

    def opened(**bad: Any) -> Numbered:
        return open_records(tmp_path / "work", read_data(two), bad.get("bad", {}), look, skip=bool(bad))[0]

    (tmp_path / "work").mkdir()
    opened()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"records.copy", "records.1.copy"}
    path = two.more[0].path
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows[:4], *rows[5:]]))
    found = opened()
    assert (len(found), found.counts, found[14]) == (20, [10, 10], None)
    fifteenth = found[15]
    assert fifteenth is not None
    assert (fifteenth.id, fifteenth.file, fifteenth.index) == ("r5", path, 4)
    known = BadRecord(file=str(path), index=8, id="r9", kind="damaged picture", reason="")
    assert opened(bad={18: known})[19] is None  # the 19th of the files now was the 20th
    path.write_text(json.dumps(rows[:3]))
    with pytest.raises(UsageError, match=r"record 13 \(id r3\) is gone or changed"):
        opened()


def test_a_run_goes_on_after_a_picture_of_the_second_file_was_mended(
    two: FinetuneOptions, tmp_path: Path
) -> None:
    whole = finetune(tmp_path / "whole", two)
    index = next(n - 10 for n in draw(two.files, [10, 10], 0).tolist() if n > 10 and (n - 10) % 3)
    picture = tmp_path / "b" / f"{index}.png"
    good = picture.read_bytes()
    picture.write_bytes(b"no picture")
    with pytest.raises(RecordError, match=rf"b/data\.json: record {index} .*--resume"):
        finetune(tmp_path / "out", two)
    picture.write_bytes(good)
    other = replace(two, more=(replace(two.more[0], weight=0.7),))
    with pytest.raises(UsageError, match=r"the unfinished run has mix \[1\.0, 0\.5\]"):
        finetune(tmp_path / "out", other, resume=True)
    assert finetune(tmp_path / "out", two, resume=True).last_loss == whole.last_loss
