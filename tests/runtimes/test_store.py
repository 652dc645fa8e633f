"""What pictures become, kept on disk."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.llamacpp_library import load_library
from tinyllava_edge.runtimes.model import Model, open_bundle
from tinyllava_edge.runtimes.store import FOLDER, PictureStore

QUESTION = [("What is this?", None)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/tinyllava-edge" / FOLDER).glob("[!.]*"))


def answered(model: Model, picture: Image.Image, question: str = "What is this?") -> Any:
    stream = model.answer([(question, None)], picture, max_tokens=8)
    assert "".join(stream)
    return stream


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 50).convert("RGB")


@pytest.mark.parametrize("question", ["What is this?", "Is it a fruit? Answer yes or no."])
def test_a_known_picture_is_not_computed_again_in_another_process(
    picture: Image.Image, question: str
) -> None:
    with open_bundle("nano") as model:  # the oracle: nothing is kept
        cold = answered(model, picture, question)
    with open_bundle("nano", store_mb=50) as model:
        answered(model, picture)
    with open_bundle("nano", store_mb=50) as model:
        model.vision.encode = None  # type: ignore[method-assign,assignment]  # would not answer
        warm = answered(model, picture, question)
    assert warm.ids == cold.ids
    assert cold.timings.reused_tokens == 0
    num_tokens = model.bundle.manifest.vision.num_tokens
    assert warm.timings.reused_tokens > num_tokens


def test_what_was_put_back_gives_the_same_bits(picture: Image.Image) -> None:
    rows = []
    for store_mb in (0, 50, 50):
        with open_bundle("nano", store_mb=store_mb, language="q8_0") as model:
            answered(model, picture)
            rows.append(model.language.last_logits())
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize("other", [{"kv_type": "f32"}, {"flash_attention": "off"}])
def test_other_options_have_a_store_of_their_own(picture: Image.Image, other: dict[str, Any]) -> None:
    with open_bundle("nano", store_mb=50) as model:
        answered(model, picture)
    with open_bundle("nano", store_mb=50, **other) as model:
        assert answered(model, picture).timings.reused_tokens == 0


def test_two_pictures_are_kept_as_one_beginning(picture: Image.Image) -> None:
    second = picture.rotate(90)
    turns = [("<image> and <image>: which is larger?", None)]
    ids = []
    for _ in range(2):
        with open_bundle("nano", store_mb=50) as model:
            stream = model.answer(turns, [picture, second], max_tokens=4)
            assert "".join(stream) is not None
            ids.append(stream.ids)
    assert ids[0] == ids[1]
    assert stream.timings is not None
    assert stream.timings.reused_tokens > 2 * model.bundle.manifest.vision.num_tokens


def test_a_shorter_context_computes_what_does_not_fit(picture: Image.Image) -> None:
    with open_bundle("nano", store_mb=50, context_length=512) as model:
        first = answered(model, picture)
    with open_bundle("nano", store_mb=50, context_length=90) as model:
        assert answered(model, picture).ids == first.ids


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _open_to_others(path: Path) -> None:
    path.chmod(0o644)


def _link(path: Path) -> None:
    other = path.with_name(".other")
    path.rename(other)
    path.symlink_to(other)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [_cut, _flip, _open_to_others, _link, _pipe])
def test_what_is_damaged_or_not_private_is_computed(
    tmp_path: Path, picture: Image.Image, damage: Any
) -> None:
    with open_bundle("nano", store_mb=50) as model:
        first = answered(model, picture)
    assert len(kept(tmp_path)) == 2
    for path in kept(tmp_path):
        damage(path)
    with open_bundle("nano", store_mb=50) as model:
        second = answered(model, picture)
    assert second.ids == first.ids
    assert second.timings.reused_tokens == 0


def test_files_that_changed_places_are_not_taken(tmp_path: Path) -> None:
    store = PictureStore(tmp_path / "store", b"base", 1000)
    store.keep("rows", b"one", b"1" * 8)
    store.keep("rows", b"two", b"2" * 8)
    one, two = sorted((tmp_path / "store").iterdir())
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert store.read("rows", b"one") is None
    assert store.read("rows", b"two") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = PictureStore(tmp_path / "store", b"base", 3 * (100 + 32))
    for number in range(3):
        store.keep("rows", bytes([number]), bytes(100))
        os.utime(store._path("rows", bytes([number])), (number, number))
    assert store.read("rows", b"\0") == bytes(100)
    store.keep("rows", b"\3", bytes(100))
    assert [store.has("rows", bytes([number])) for number in range(4)] == [True, False, True, True]
    store.keep("rows", b"\4", bytes(1000))  # more than there may ever be
    assert not store.has("rows", b"\4")
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) <= 3 * 132


def test_a_store_that_cannot_be_written_keeps_nothing(tmp_path: Path, picture: Image.Image) -> None:
    folder = tmp_path / "cache/tinyllava-edge" / FOLDER
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    with open_bundle("nano", store_mb=50) as model:
        assert answered(model, picture)
    assert folder.read_text() == "a file"


def test_a_picture_is_encoded_once_whatever_the_runtime(tmp_path: Path, picture: Image.Image) -> None:
    for _ in range(2):
        with open_bundle("nano", runtime="scripted", store_mb=50) as model:
            answered(model, picture)
    assert len(kept(tmp_path)) == 1  # a scripted context is not kept


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(UsageError, match="store_mb is -1"):
        open_bundle("nano", store_mb=-1)


def test_a_state_that_cannot_be_put_back_is_computed_whatever_the_context_had(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bundle("nano", store_mb=50) as model:
        wanted = answered(model, picture).ids
    with open_bundle("nano", store_mb=50) as model:
        model.ask("Who are you?", max_tokens=1)  # begins as the next prompt does
        monkeypatch.setattr(load_library().bindings, "llama_state_seq_set_data", lambda *_: 0)
        assert answered(model, picture).ids == wanted
