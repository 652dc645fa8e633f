"""The engine cache: private, keyed by all that matters, and never a crash over what is in it."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.errors import BackendError, NoEngineError
from tinyllava_edge.runtimes.trt.cache import EngineCache, engine_folder
from tinyllava_edge.runtimes.trt.record import Board, Choice, EngineKey, EngineRecord, Step, new_record

BOARD = Board(
    library="tensorrt",
    library_version="10.3.0",
    gpu="Fake Orin",
    sm=87,
    multiprocessors=8,
    driver="540.4.0, CUDA 12.6",
    cuda="12.6",
    module="p3767-0005",
    l4t="36.4.3",
)


def make_key(**board: Any) -> EngineKey:
    return EngineKey(
        onnx={"vision/fp16.onnx": "0" * 64},
        board=BOARD.model_copy(update=board),
        profile=(1, 1, 4),
        flags={"workspace_bytes": "None"},
    )


def store(cache: EngineCache, key: EngineKey, plan: bytes) -> EngineRecord:
    with cache.work_file() as work:
        work.write_bytes(plan)
        record = new_record(key, "fp16", work)
        cache.store(record, work)
    return record


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return EngineCache()


def test_an_engine_is_found_by_its_key(cache: EngineCache) -> None:
    record = store(cache, make_key(), b"the plan")
    with cache.find(make_key()) as found:
        assert found.record == record
        assert bytes(found.plan) == b"the plan"
    assert cache.record(make_key().digest) == record


@pytest.mark.parametrize("field", list(Board.model_fields))
def test_another_board_is_another_key(cache: EngineCache, field: str) -> None:
    store(cache, make_key(), b"plan")
    other = 1 if isinstance(getattr(BOARD, field), int) else "other"
    with pytest.raises(NoEngineError, match="there is none yet"):
        cache.find(make_key(**{field: other}))
    changed = BOARD.model_copy(update={field: other})
    assert changed.difference(BOARD) == f"{field} {other}, not {getattr(BOARD, field)}"


@pytest.mark.parametrize(
    "change", [{"onnx": {"vision/fp16.onnx": "1" * 64}}, {"profile": (1, 1, 1)}, {"flags": {}}]
)
def test_another_graph_profile_or_flag_is_another_key(cache: EngineCache, change: dict[str, Any]) -> None:
    store(cache, make_key(), b"plan")
    with pytest.raises(NoEngineError):
        cache.find(make_key().model_copy(update=change))


def test_the_key_does_not_depend_on_the_order_of_its_parts() -> None:
    one = make_key().model_copy(update={"onnx": {"a": "0" * 64, "b": "1" * 64}})
    other = make_key().model_copy(update={"onnx": {"b": "1" * 64, "a": "0" * 64}})
    assert one.digest == other.digest


def test_everything_is_private_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    before = os.umask(0)
    try:
        cache = EngineCache()
        store(cache, make_key(), b"plan")
        with cache.lock(make_key()):
            pass
    finally:
        os.umask(before)
    assert cache.folder == engine_folder()
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    files = list(cache.folder.iterdir())
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_a_folder_that_is_not_private_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "engines"
    if what == "open to others":
        folder.mkdir(mode=0o750)
    elif what == "a link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    else:
        folder.touch()
    with pytest.raises((BackendError, FileExistsError)):
        EngineCache(folder)


def spoil_plan(cache: EngineCache, content: bytes | None, mode: int = 0o600) -> None:
    (plan,) = cache.folder.glob("*.plan")
    plan.unlink()
    if content is not None:
        plan.write_bytes(content)
        plan.chmod(mode)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"the plaN", 0o600, "its hash"),
        (b"the plan!", 0o600, "its size"),
        (b"", 0o600, "its size"),
        (None, 0o600, "no such file"),
        (b"the plan", 0o644, "not private"),
        (b"the plan", 0o620, "not private"),
    ],
)
def test_a_plan_that_was_changed_counts_as_missing(
    cache: EngineCache, content: bytes | None, mode: int, reason: str
) -> None:
    store(cache, make_key(), b"the plan")
    spoil_plan(cache, content, mode)
    with pytest.raises(NoEngineError, match=reason):
        cache.find(make_key())
    store(cache, make_key(), b"a new one")
    with cache.find(make_key()) as found:
        assert bytes(found.plan) == b"a new one"


def test_every_bit_of_a_plan_counts(cache: EngineCache) -> None:
    store(cache, make_key(), bytes(16))
    for bit in range(128):
        changed = bytearray(16)
        changed[bit // 8] ^= 1 << bit % 8
        spoil_plan(cache, bytes(changed))
        with pytest.raises(NoEngineError, match="its hash"):
            cache.find(make_key())


def test_a_link_to_a_plan_elsewhere_is_not_followed(cache: EngineCache, tmp_path: Path) -> None:
    store(cache, make_key(), b"the plan")
    (plan,) = cache.folder.glob("*.plan")
    plan.rename(tmp_path / "elsewhere")
    plan.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoEngineError, match="symbolic links"):
        cache.find(make_key())


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", '{"schema_version": 2}', "[" * 100_000, "\x00", "9" * 5_000],
)
def test_a_damaged_record_counts_as_missing(cache: EngineCache, text: str) -> None:
    record = store(cache, make_key(), b"plan")
    path = cache.folder / f"{record.key.digest}.json"
    path.write_text(text)
    with pytest.raises(NoEngineError, match="damaged"):
        cache.find(make_key())
    assert list(cache.records()) == [(path, None)]


def test_a_record_of_another_key_or_with_a_path_in_it_is_refused(cache: EngineCache) -> None:
    record = store(cache, make_key(), b"plan")
    path = cache.folder / f"{record.key.digest}.json"
    raw = json.loads(path.read_text())
    raw["key"]["board"]["gpu"] = "another"
    path.write_text(json.dumps(raw))
    with pytest.raises(NoEngineError, match="another key"):
        cache.find(make_key())
    path.write_text(json.dumps({**record.model_dump(mode="json"), "plan_sha256": "../" * 21 + "a"}))
    with pytest.raises(NoEngineError, match="damaged"):
        cache.find(make_key())


def test_a_huge_record_is_not_read(cache: EngineCache) -> None:
    record = store(cache, make_key(), b"plan")
    path = cache.folder / f"{record.key.digest}.json"
    with path.open("ab") as file:
        file.truncate(2 << 20)
    with pytest.raises(NoEngineError, match="too large"):
        cache.find(make_key())


def test_a_new_engine_replaces_the_old_file(cache: EngineCache) -> None:
    for plan in (b"first", b"second"):
        store(cache, make_key(), plan)
    assert [path.read_bytes() for path in cache.folder.glob("*.plan")] == [b"second"]


def test_what_a_failed_build_left_is_removed(cache: EngineCache) -> None:
    def fail() -> None:
        with cache.work_file() as work:
            work.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(cache.folder.iterdir()) == []


def test_a_choice_is_remembered_by_bundle(cache: EngineCache) -> None:
    step = Step(
        runtime="tensorrt+llamacpp", vision="fp16", outcome="chosen", reason="equal", parity={"snr_db": None}
    )
    choice = Choice(
        manifest_sha256="a" * 64, runtime="tensorrt+llamacpp", vision="fp16", engine="b" * 64, steps=(step,)
    )
    cache.choose(choice)
    assert cache.choice("a" * 64) == choice
    assert cache.choice("c" * 64) is None
    assert list(cache.records()) == []
    (cache.folder / f"choice-{'a' * 64}.json").write_text("{")
    assert cache.choice("a" * 64) is None


def _build_in_a_process(folder: Path, number: int, done: Any) -> None:
    cache = EngineCache(folder)
    for _ in range(10):
        with cache.lock(make_key()):
            store(cache, make_key(), bytes([number]) * 50_000)
            with cache.find(make_key()) as found:
                assert len(set(bytes(found.plan))) == 1
    done.put(number)


def test_processes_that_build_the_same_engine_do_not_mix(cache: EngineCache) -> None:
    context = multiprocessing.get_context("fork")
    done: Any = context.Queue()
    workers = [context.Process(target=_build_in_a_process, args=(cache.folder, n, done)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(done.get(timeout=5) for _ in workers) == [0, 1, 2]
    with cache.find(make_key()) as found:
        assert len(set(bytes(found.plan))) == 1


def test_a_second_builder_waits_and_is_told_so(cache: EngineCache) -> None:
    """Two handles of one process exclude each other as those of two processes do."""

    class WaitError(Exception):
        pass

    def on_wait() -> None:
        raise WaitError

    with cache.lock(make_key()):
        with pytest.raises(WaitError), cache.lock(make_key(), on_wait):
            pass
        with cache.lock(make_key(sm=86), on_wait):
            pass
    with cache.lock(make_key(), on_wait):
        pass
