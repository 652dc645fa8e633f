"""The language half on llama.cpp, with a GGUF that our exporter did not write."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.contract import LanguageContract
from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.errors import BackendError, BundleError, UsageError
from tinyllava_edge.runtimes.llamacpp import LlamaCppLanguage


def open_gguf(path: Path, *, kv_type: str = "f32", context_length: int | None = None) -> LlamaCppLanguage:
    spec, _ = write_tiny_gguf(path, head_dim=32)
    return LlamaCppLanguage(
        path, spec, name="llamacpp f32", kv_type=kv_type, context_length=context_length, threads=1
    )


class TestF32(LanguageContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[LlamaCppLanguage]:
        backend = open_gguf(tmp_path / "f32.gguf")
        yield backend
        backend.close()


class TestF16(LanguageContract):
    tolerance = 0.01  # flash attention adds up in fp16, in an order that depends on the batch

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[LlamaCppLanguage]:
        backend = open_gguf(tmp_path / "f32.gguf", kv_type="f16")
        yield backend
        backend.close()


class TestQ8(LanguageContract):
    tolerance = 0.02

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[LlamaCppLanguage]:
        backend = open_gguf(tmp_path / "f32.gguf", kv_type="q8_0")
        yield backend
        backend.close()


def test_a_tokens_embedding_gives_the_same_logits_as_its_id(tmp_path: Path) -> None:
    spec, embeddings = write_tiny_gguf(tmp_path / "f32.gguf")
    backend = LlamaCppLanguage(tmp_path / "f32.gguf", spec, name="x", kv_type="f32", threads=1)
    ids = np.array([5, 200, 17, 5, 299], dtype=np.int32)
    by_id = backend.evaluate(ids, 0, all_logits=True)
    backend.truncate(0)
    by_row = backend.evaluate(embeddings[ids], 0, all_logits=True)
    assert by_id is not None
    assert by_row is not None
    np.testing.assert_array_equal(by_id, by_row)
    backend.close()


def test_a_shorter_context_is_made_when_asked_for(tmp_path: Path) -> None:
    backend = open_gguf(tmp_path / "f32.gguf", context_length=40)
    assert backend.context_length == 40
    backend.evaluate(np.full(40, 7, dtype=np.int32), 0)
    backend.close()


def test_a_truncated_file_is_an_error_with_llama_cpps_own_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf")
    data = (tmp_path / "f32.gguf").read_bytes()
    (tmp_path / "f32.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(
        BackendError, match=r"cannot load it.*llama.cpp: .*data is not within the file bounds"
    ):
        LlamaCppLanguage(tmp_path / "f32.gguf", spec, name="x")
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_gguf_is_an_error(tmp_path: Path) -> None:
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf")
    (tmp_path / "f32.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(BackendError, match="invalid magic"):
        LlamaCppLanguage(tmp_path / "f32.gguf", spec, name="x")


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 301), ("hidden_size", 96)])
def test_a_file_of_another_model_is_refused(tmp_path: Path, field: str, value: int) -> None:
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf")
    with pytest.raises(BundleError, match=str(value)):
        LlamaCppLanguage(tmp_path / "f32.gguf", spec.model_copy(update={field: value}), name="x")


def test_an_unknown_kv_type_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="f16, f32, q8_0"):
        open_gguf(tmp_path / "f32.gguf", kv_type="q3")


def test_a_kv_type_the_model_cannot_have_is_an_error_with_the_reason(tmp_path: Path) -> None:
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf", head_dim=16)
    with pytest.raises(BackendError, match="block size 32"):
        LlamaCppLanguage(tmp_path / "f32.gguf", spec, name="x", kv_type="q8_0")


def test_opening_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_gguf(tmp_path / "f32.gguf").close()
    assert capfd.readouterr() == ("", "")
