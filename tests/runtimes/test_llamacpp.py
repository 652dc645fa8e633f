"""The language half on llama.cpp, with a GGUF that our exporter did not write."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtimes.contract import LanguageContract
from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.bundle import LanguageSpec
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.runtimes.base import BackendOptions, StopFlag, StoppedError
from tinyllava_edge.runtimes.llamacpp import LlamaCppLanguage
from tinyllava_edge.runtimes.llamacpp_library import Log, load_library
from tinyllava_edge.runtimes.llamacpp_offload import NoMemoryError


def open_gguf(path: Path, spec: LanguageSpec, **settings: Any) -> LlamaCppLanguage:
    chosen: dict[str, Any] = {"kv_type": "f32", "context_length": spec.context_length, "threads": 1}
    return LlamaCppLanguage(path, spec, BackendOptions(**{**chosen, **settings}), name="llamacpp f32")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return tmp_path / "f32.gguf"


class TestF32(LanguageContract):
    @pytest.fixture
    def backend(self, gguf: Path) -> Iterator[LlamaCppLanguage]:
        spec, _ = write_tiny_gguf(gguf, head_dim=32)
        backend = open_gguf(gguf, spec, kv_type="f32")
        yield backend
        backend.close()


class TestF16(LanguageContract):
    tolerance = 0.01  # flash attention adds up in fp16, in an order that depends on the batch

    @pytest.fixture
    def backend(self, gguf: Path) -> Iterator[LlamaCppLanguage]:
        spec, _ = write_tiny_gguf(gguf, head_dim=32)
        backend = open_gguf(gguf, spec, kv_type="f16")
        yield backend
        backend.close()


class TestQ8(LanguageContract):
    tolerance = 0.02

    @pytest.fixture
    def backend(self, gguf: Path) -> Iterator[LlamaCppLanguage]:
        spec, _ = write_tiny_gguf(gguf, head_dim=32)
        backend = open_gguf(gguf, spec, kv_type="q8_0")
        yield backend
        backend.close()


def test_a_tokens_embedding_gives_the_same_logits_as_its_id(gguf: Path) -> None:
    spec, embeddings = write_tiny_gguf(gguf)
    backend = open_gguf(gguf, spec)
    ids = np.array([5, 200, 17, 5, 299], dtype=np.int32)
    by_id = backend.evaluate(ids, 0, all_logits=True)
    backend.truncate(0)
    by_row = backend.evaluate(embeddings[ids], 0, all_logits=True)
    assert by_id is not None
    assert by_row is not None
    np.testing.assert_array_equal(by_id, by_row)
    backend.close()


class TurnByTurn:
    """All threads, and one, in turns."""

    count = 2

    def took(self, seconds: float) -> None:
        self.count = 3 - self.count


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_tokens_are_the_same_to_the_bit_where_fewer_threads_may_decode_them(gguf: Path, kv_type: str) -> None:
    spec, _ = write_tiny_gguf(gguf, head_dim=32)
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, 600).astype(np.int32)
    logits = []
    for threads in (None, TurnByTurn()):
        language = open_gguf(gguf, spec, kv_type=kv_type, threads=2)
        if threads is not None:
            language._decode_threads = threads  # type: ignore[assignment]
        language.evaluate(ids[:200], 0)
        for position in range(200, len(ids)):
            language.evaluate(ids[position : position + 1], position)
            logits.append(language.last_logits())
        language.close()
    as_ever, by_turns = np.split(np.stack(logits), 2)
    np.testing.assert_array_equal(as_ever, by_turns)


def test_a_shorter_context_is_made_when_asked_for(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf)
    backend = open_gguf(gguf, spec, context_length=40)
    assert backend.context_length == 40
    backend.evaluate(np.full(40, 7, dtype=np.int32), 0)
    backend.close()


def test_a_failing_evaluation_is_an_error_with_llama_cpps_own_words(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf)
    backend = open_gguf(gguf, spec)
    backend.evaluate(np.array([5, 6, 7], dtype=np.int32), 0)
    backend._position = 7  # a hole: llama.cpp holds three
    with pytest.raises(
        BackendError, match=r"at position 7 returned -1 \(invalid batch\).* llama.cpp: .*position"
    ):
        backend.evaluate(np.array([5], dtype=np.int32), 7)
    backend.truncate(0)
    backend.evaluate(np.array([5], dtype=np.int32), 0)
    backend.close()


@pytest.mark.parametrize("within", [False, True])
def test_what_is_stopped_ends_at_once_and_the_next_is_as_ever(
    gguf: Path, within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches, and within one, where llama.cpp itself looks."""
    spec, _ = write_tiny_gguf(gguf, head_dim=32)
    language, flag = open_gguf(gguf, spec), StopFlag()
    ids = np.arange(100, dtype=np.int32)
    language.evaluate(ids, 0)
    wanted = language.last_logits()
    decode, codes = load_library().bindings.llama_decode, []

    def set_then_decode(*arguments: Any) -> int:
        flag.set()
        codes.append(decode(*arguments))
        return int(codes[-1])

    language.truncate(0)
    language.heed(flag)
    if within:
        monkeypatch.setattr(load_library().bindings, "llama_decode", set_then_decode)
    else:
        flag.set()
    with pytest.raises(StoppedError):
        language.evaluate(ids, 0)
    assert codes == [2] * within
    monkeypatch.undo()
    language.heed(None)
    language.truncate(0)
    language.evaluate(ids, 0)
    np.testing.assert_array_equal(language.last_logits(), wanted)
    language.close()


def test_a_truncated_file_is_an_error_with_llama_cpps_own_words(
    gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, _ = write_tiny_gguf(gguf)
    data = gguf.read_bytes()
    gguf.write_bytes(data[: len(data) // 2])
    with pytest.raises(BackendError, match=r"cannot load it.*llama.cpp: .*not within the file bounds"):
        open_gguf(gguf, spec)
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_gguf_is_an_error(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf)
    gguf.write_bytes(b"not a model" * 100)
    with pytest.raises(BackendError, match="invalid magic"):
        open_gguf(gguf, spec)


def test_a_kv_type_the_model_cannot_have_is_an_error_with_the_reason(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf, head_dim=16)
    with pytest.raises(BackendError, match="block size 32"):
        open_gguf(gguf, spec, kv_type="q8_0")


def test_a_context_that_memory_has_no_room_for_is_an_error_with_its_size_and_what_takes_less(
    gguf: Path, request: pytest.FixtureRequest
) -> None:
    spec, _ = write_tiny_gguf(gguf, layers=4, heads=32, kv_heads=32, head_dim=128, context=1 << 22)
    resource = pytest.importorskip("resource")
    most = resource.getrlimit(resource.RLIMIT_AS)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_AS, most))
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, most[1]))  # where the system promises what it has not
    # keys and values, 4 layers, 32 heads of 128: 512 GiB in f32, of which q8_0 needs 34/128
    with pytest.raises(
        NoMemoryError, match=r"f32 KV cache alone is 524,288 MiB: a smaller --context and --kv-type"
    ):
        open_gguf(gguf, spec)
    with pytest.raises(NoMemoryError, match=r"q8_0 KV cache alone is 139,264 MiB: a smaller --context take"):
        open_gguf(gguf, spec, kv_type="q8_0")


def test_the_context_is_4096_positions_at_most_unless_more_are_asked_for(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf, context=8192)
    for asked, length in ((None, 4096), (8192, 8192), (100, 100)):
        backend = open_gguf(gguf, spec, context_length=asked)
        assert backend.context_length == length
        backend.close()
    with pytest.raises(UsageError, match="8193 positions was asked for, the model was made for 8192"):
        open_gguf(gguf, spec, context_length=8193)


def test_room_is_kept_for_the_logits_of_64_rows(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = 50_000
    spec, _ = write_tiny_gguf(gguf, vocab=vocab, head_dim=32)
    library = load_library()
    lines: list[str] = []
    hear = library.bindings.llama_log_callback(lambda level, text, _: lines.append(text.decode()))
    monkeypatch.setattr(library.log, "attach", lambda: library.bindings.llama_log_set(hear, None))
    open_gguf(gguf, spec, kv_type="f16").close()
    monkeypatch.undo()
    library.log.attach()
    [size] = re.findall(r"compute buffer size = +([0-9.]+) MiB", "".join(lines))
    assert 64 * vocab * 4 < float(size) * (1 << 20) < 128 * vocab * 4


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_flash_attention_is_as_asked_for(gguf: Path, kv_type: str) -> None:
    spec, _ = write_tiny_gguf(gguf, head_dim=32)
    ids = np.arange(5, 45, dtype=np.int32)
    found = {}
    for asked in (None, "auto", "on", "off"):
        backend = open_gguf(gguf, spec, kv_type=kv_type, flash_attention=asked)
        backend.evaluate(ids, 0)
        found[asked] = backend.last_logits()
        backend.close()
    np.testing.assert_array_equal(found["auto"], found["on"])  # this processor has it
    assert (found["on"] != found["off"]).any()
    np.testing.assert_allclose(found["on"], found["off"], rtol=0, atol=0.01)
    np.testing.assert_array_equal(found[None], found["off" if kv_type == "f32" else "on"])


def test_a_quantized_cache_needs_flash_attention(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf, head_dim=32)
    with pytest.raises(UsageError, match="q8_0 KV cache needs flash attention"):
        open_gguf(gguf, spec, kv_type="q8_0", flash_attention="off")


def test_opening_prints_nothing(gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec, _ = write_tiny_gguf(gguf)
    open_gguf(gguf, spec).close()
    assert capfd.readouterr() == ("", "")


def test_closing_frees_the_memory(gguf: Path) -> None:
    spec, _ = write_tiny_gguf(gguf, layers=8)
    wide = {"kv_type": "f32", "context_length": 1024}
    resident = []
    for _ in range(12):
        backend = open_gguf(gguf, spec, **wide)
        backend.evaluate(np.full(1024, 7, dtype=np.int32), 0)
        backend.close()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
    cache_bytes = 2 * 8 * 1024 * spec.num_key_value_heads * spec.head_dim * 4
    assert resident[-1] - resident[3] < 2 * cache_bytes  # a leak would be eight of them and more


def test_the_gpu_is_known_by_what_llama_cpp_says_of_it_when_it_first_looks() -> None:
    log = Log(load_library().bindings)
    assert log.gpu_sm == ""
    for line in (
        b"ggml_cuda_init: found 2 CUDA devices (Total VRAM: 15656 MiB):\n",
        b"  Device 0: Orin, compute capability 8.7, VMM: yes, VRAM: 7620 MiB\n",
        b"  Device 1: Tesla T4, compute capability 7.5, VMM: yes, VRAM: 15360 MiB\n",
    ):
        log.receive(2, line)
    assert log.gpu_sm == "8.7"
