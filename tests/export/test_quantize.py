"""Quantized types come from llama.cpp's own quantizer, and what it made of them is said."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import pytest

from tests.export.conftest import Exported
from tests.export.gguf_files import language_source
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.export.parity import check_language
from tinyllava_edge.export.quantize import quantize_gguf
from tinyllava_edge.gguf_check import check_gguf
from tinyllava_edge.manifest import LanguageSpec
from tinyllava_edge.precisions import LANGUAGE_TYPES


@pytest.mark.parametrize("name", [name for name in LANGUAGE_TYPES if name not in ("f32", "f16")])
def test_every_type_is_written_and_is_above_its_floor(name: str, exported: Exported, tmp_path: Path) -> None:
    quantize_gguf(exported.bundle.root / "language" / "f32.gguf", tmp_path / "file.gguf", name)
    report = check_language(tmp_path / "file.gguf", name, language_source(exported.checkpoint))
    check_gguf(tmp_path / "file.gguf", name, exported.bundle.manifest.language)
    assert report["fallback"] == []
    assert report["counts"]["f32"] == 5  # the norms
    main_type = max(report["counts"], key=report["counts"].get)
    assert name.startswith(main_type) or (name, main_type) == ("iq3_m", "iq3_s")
    assert report["lowest_snr_db"] < 60
    fields = gguf.GGUFReader(tmp_path / "file.gguf").fields
    assert fields["general.file_type"].contents() == getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name.upper()}")


def test_q4_k_m_mixes_q4_k_and_q6_k(exported: Exported) -> None:
    file = exported.bundle.root / "language" / "q4_k_m.gguf"
    report = check_language(file, "q4_k_m", language_source(exported.checkpoint))
    assert set(report["counts"]) == {"f32", "q4_k", "q6_k"}


def test_rows_that_are_no_multiple_of_the_block_are_reported(source: LanguageSource, tmp_path: Path) -> None:
    """Hidden size 64: every K-quant of such a row silently becomes a type with blocks of 32."""
    write_language_gguf(tmp_path / "f32.gguf", source, "f32")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q4_k_m.gguf", "q4_k_m")
    report = check_language(tmp_path / "q4_k_m.gguf", "q4_k_m", source)
    assert not {"q4_k", "q6_k"} & set(report["counts"])
    assert len(report["fallback"]) == 2 * 7 + 2
    assert "blk.0.attn_q.weight: q5_0, width 64" in report["fallback"]
    check_gguf(tmp_path / "q4_k_m.gguf", "q4_k_m", LanguageSpec.of(source.checkpoint.config.language))


def test_llama_cpps_own_words_are_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ExportError, match=r"q8_0: .*failed to"):
        quantize_gguf(tmp_path / "bad.gguf", tmp_path / "out.gguf", "q8_0")


def test_the_log_callback_is_put_back(exported: Exported, tmp_path: Path) -> None:
    def current() -> int:
        callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
        llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
        return ctypes.cast(callback, ctypes.c_void_p).value or 0

    before = current()
    quantize_gguf(exported.bundle.root / "language" / "f32.gguf", tmp_path / "q8_0.gguf", "q8_0")
    assert current() == before
