"""The memory of verified files: opening again does not hash, and no change goes unseen."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

import pytest

from tests.core.small_bundle import FILES, change_manifest, file_entry, write_small_bundle
from tinyllava_edge import bundle as bundle_module
from tinyllava_edge import verified_files
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError
from tinyllava_edge.runtimes import registry
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.verified_files import sha256_of_open


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, which remembers fresh files at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified_files, "SETTLED_AFTER_NS", -1)
    return tmp_path / "cache" / "tinyllava-edge" / "verified.json"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were hashed, in order."""
    names: list[str] = []

    def counted(file: BinaryIO) -> str:
        names.append(Path(file.name).name)
        return sha256_of_open(file)

    monkeypatch.setattr(bundle_module, "sha256_of_open", counted)
    return names


def test_the_second_open_does_not_hash(root: Path, cache: Path, hashed: list[str]) -> None:
    Bundle.open(root)
    assert sorted(hashed) == sorted(Path(name).name for name in FILES)
    hashed.clear()
    Bundle.open(root)
    assert hashed == []
    assert cache.stat().st_mode & 0o777 == 0o600


def test_graphs_are_read_once_and_again_by_other_rules_or_with_other_files_beside(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(bundle_module, "check_onnx", lambda path, apart: read.append((path.name, [*apart])))
    both = [("fp16.onnx", []), ("fp32.onnx", ["fp32.onnx.data"])]
    Bundle.open(root)
    assert sorted(read) == both
    Bundle.open(root)
    assert sorted(read) == both
    monkeypatch.setattr(bundle_module, "RULES", 0)
    Bundle.open(root)
    assert sorted(read) == sorted(both * 2)
    read.clear()

    def without_data(manifest: dict[str, Any]) -> None:
        manifest["variants"][0]["files"] = ["vision/fp32.onnx"]

    change_manifest(root, without_data)
    Bundle.open(root)
    assert read == [("fp32.onnx", [])]


def test_a_file_changed_under_a_restored_time_is_found(root: Path, cache: Path) -> None:
    Bundle.open(root)
    path = root / "language/f16.gguf"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"GGUF", b"EVIL"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    with pytest.raises(BundleError, match=r"f16.gguf: sha256"):
        Bundle.open(root)


def test_a_file_put_in_the_place_of_another_is_found(root: Path, cache: Path, tmp_path: Path) -> None:
    Bundle.open(root)
    path = root / "vision/fp16.onnx"
    before = path.stat()
    (tmp_path / "other").write_bytes(b"x" * before.st_size)
    os.replace(tmp_path / "other", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=r"fp16.onnx: sha256"):
        Bundle.open(root)


def test_only_the_changed_file_is_hashed_again(root: Path, cache: Path, hashed: list[str]) -> None:
    Bundle.open(root)
    hashed.clear()
    (root / "tokenizer.json").touch()
    Bundle.open(root)
    assert hashed == ["tokenizer.json"]


def test_a_verified_file_under_another_hash_is_not_believed(root: Path, cache: Path) -> None:
    Bundle.open(root)
    change_manifest(root, lambda m: m["files"][0].update(sha256=hashlib.sha256(b"other").hexdigest()))
    with pytest.raises(BundleError, match="the file was changed"):
        Bundle.open(root)


def test_a_fresh_file_is_not_remembered(
    root: Path, tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within the same tick of the file system's clock would go unseen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Bundle.open(root)
    hashed.clear()
    Bundle.open(root)
    assert sorted(hashed) == sorted(Path(name).name for name in FILES)


@pytest.mark.parametrize("mode", [0o620, 0o606, 0o666, 0o644])
def test_a_cache_that_others_can_touch_is_not_believed(
    root: Path, cache: Path, hashed: list[str], mode: int
) -> None:
    Bundle.open(root)
    cache.chmod(mode)
    hashed.clear()
    Bundle.open(root)
    assert len(hashed) == len(FILES)


def test_a_cache_of_somebody_else_is_not_believed(root: Path, cache: Path, hashed: list[str]) -> None:
    Bundle.open(root)
    try:
        os.chown(cache, 65534, 65534)
    except PermissionError:
        pytest.skip("only root can give files away")
    hashed.clear()
    Bundle.open(root)
    assert len(hashed) == len(FILES)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b'{"a": []}']
)
def test_a_damaged_cache_is_replaced(root: Path, cache: Path, hashed: list[str], content: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch(mode=0o600)
    cache.write_bytes(content)
    Bundle.open(root)
    hashed.clear()
    Bundle.open(root)
    assert hashed == []


def blocked_by_file(cache: Path) -> None:
    cache.parents[1].write_text("in the way")


def blocked_by_folder(cache: Path) -> None:
    cache.mkdir(parents=True)


def blocked_by_dead_link(cache: Path) -> None:
    cache.parents[1].symlink_to("/proc/nowhere")


@pytest.mark.parametrize("block", [blocked_by_file, blocked_by_folder, blocked_by_dead_link])
def test_a_cache_that_cannot_be_written_is_done_without(
    root: Path, cache: Path, block: Callable[[Path], None]
) -> None:
    block(cache)
    assert Bundle.open(root)
    assert Bundle.open(root)


def test_the_cache_does_not_grow_for_ever(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verified_files, "MAX_ENTRIES", 8)
    Bundle.open(root)
    Bundle.open(write_small_bundle(tmp_path / "second"))
    known: dict[str, Any] = json.loads(cache.read_text())
    assert len(known) == 8


def entry_of(manifest: dict[str, Any], path: str) -> dict[str, Any]:
    return next(entry for entry in manifest["files"] if entry["path"] == path)


def replaced(path: Path, spare: Path) -> None:
    spare.write_bytes(path.read_bytes())
    os.replace(spare, path)


def rewritten(path: Path, spare: Path) -> None:
    path.write_bytes(path.read_bytes())


def removed(path: Path, spare: Path) -> None:
    path.unlink()


def linked(path: Path, spare: Path) -> None:
    path.rename(spare)
    path.symlink_to(spare)


@pytest.mark.parametrize("change", [replaced, rewritten, removed, linked])
def test_a_file_is_read_only_as_the_one_that_was_hashed(
    root: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    bundle = Bundle.open(root)
    assert bundle.read_text("tokenizer.json") == FILES["tokenizer.json"].decode()
    time.sleep(0.02)  # a tick of the file system's clock
    change(root / "tokenizer.json", tmp_path / "spare")
    for read in (lambda: bundle.read_text("tokenizer.json"), bundle.check_unchanged):
        with pytest.raises(BundleError, match=r"tokenizer\.json: (was changed|cannot be read)"):
            read()


def test_a_file_that_is_swapped_while_it_is_hashed_is_seen(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(file: BinaryIO) -> str:
        digest = sha256_of_open(file)
        if file.name == str(root / "language/f16.gguf"):
            replaced(root / "language/f16.gguf", tmp_path / "spare")
        return digest

    time.sleep(0.02)
    monkeypatch.setattr(bundle_module, "sha256_of_open", swapped)
    with pytest.raises(BundleError, match=r"f16\.gguf: was changed"):
        Bundle.open(root)


def test_a_file_that_changes_while_a_library_loads_it_is_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def open_vision(bundle: Bundle, options: BackendOptions) -> Any:
        time.sleep(0.02)
        rewritten(bundle.path("vision/fp16.onnx"), root)
        return Mock(close=lambda: closed.append("vision"))

    monkeypatch.setattr(registry, "vision_opener", lambda name: open_vision)
    monkeypatch.setattr(registry, "language_opener", lambda name: Mock())
    with pytest.raises(BundleError, match=r"fp16\.onnx: was changed"):
        registry.open_backends("scripted", Bundle.open(root), BackendOptions())
    assert closed == ["vision"]


def test_a_text_file_that_is_no_text_or_too_long_is_named(root: Path) -> None:
    name = "reference/reference.json"
    (root / name).write_bytes(b"{}\xff")
    change_manifest(root, lambda m: entry_of(m, name).update(file_entry(name, b"{}\xff")))
    bundle = Bundle.open(root)
    with pytest.raises(BundleError, match=r"reference\.json: byte 2 is not UTF-8"):
        bundle.read_text(name)
    with pytest.raises(BundleError, match=r"reference\.json: larger than 2 bytes"):
        bundle.read_text(name, 2)


def test_a_file_of_another_mode_is_the_same_file(root: Path) -> None:
    bundle = Bundle.open(root)
    time.sleep(0.02)
    bundle.path("tokenizer.json").chmod(0o600)
    bundle.check_unchanged()
    assert bundle.read_text("tokenizer.json").encode() == FILES["tokenizer.json"]


def test_a_result_that_is_being_written_is_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` in another process: its file has gone when it is looked at."""
    walk = os.walk

    def with_one_more(top: Path, **options: Any) -> Any:
        for folder, folders, files in walk(top, **options):
            yield folder, folders, [*files, *([".x.json"] if Path(folder).name == "parity" else [])]

    (root / "parity").mkdir()
    monkeypatch.setattr("os.walk", with_one_more)
    Bundle.open(root)
