"""The language half on llama.cpp, with a GGUF that our exporter did not write."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtimes.contract import LanguageContract
from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.bundle import LanguageSpec
from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes import llamacpp
from tinyllava_edge.runtimes.llamacpp import LlamaCppLanguage


def open_gguf(path: Path, spec: LanguageSpec, **settings: Any) -> LlamaCppLanguage:
    chosen: dict[str, Any] = {"kv_type": "f32", "context_length": spec.context_length, "threads": 1}
    return LlamaCppLanguage(path, spec, name="llamacpp f32", **{**chosen, **settings})


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
    llama_cpp, _ = llamacpp._load_library()
    log = llamacpp._Log(llama_cpp)
    assert log.gpu_sm == ""
    for line in (
        b"ggml_cuda_init: found 2 CUDA devices (Total VRAM: 15656 MiB):\n",
        b"  Device 0: Orin, compute capability 8.7, VMM: yes, VRAM: 7620 MiB\n",
        b"  Device 1: Tesla T4, compute capability 7.5, VMM: yes, VRAM: 15360 MiB\n",
    ):
        log._receive(2, line, None)
    assert log.gpu_sm == "8.7"
