"""What is written to an IR is the checkpoint's, to the bit of its type, and what is not is found."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.language_gguf import LanguageSource
from tinyllava_edge.export.language_openvino import check_openvino, write_language_openvino
from tinyllava_edge.export.openvino_weights import TYPES, quantize_int4, quantize_int8
from tinyllava_edge.ir_check import read_constants
from tinyllava_edge.ir_tensors import open_tensors, rounded
from tinyllava_edge.precisions import OPENVINO_TYPES

ROWS = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)


def test_every_type_of_the_table_is_written() -> None:
    assert tuple(OPENVINO_TYPES) == TYPES


@pytest.mark.parametrize("variant", TYPES)
def test_what_is_written_is_read_back_and_taken(source: LanguageSource, tmp_path: Path, variant: str) -> None:
    path = tmp_path / f"{variant}.xml"
    write_language_openvino(path, source, variant)
    report = check_openvino(path, source)
    assert sum(report["counts"].values()) == len(source.stored_names())
    least = {"ov_f32": None, "ov_f16": 60, "ov_int8": 40, "ov_int4": 17}[variant]
    assert (report["lowest_snr_db"] is None) if least is None else report["lowest_snr_db"] > least
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{variant}.bin"}  # no scratch is left


@pytest.mark.parametrize("variant", ["ov_int8", "ov_int4"])
def test_one_changed_byte_is_found(source: LanguageSource, tmp_path: Path, variant: str) -> None:
    path = tmp_path / f"{variant}.xml"
    write_language_openvino(path, source, variant)
    place = read_constants(path)["model.layers.1.mlp.up_proj.weight"]
    content = bytearray(path.with_suffix(".bin").read_bytes())
    content[place.offset + 7] ^= 1
    path.with_suffix(".bin").write_bytes(content)
    with pytest.raises(
        ExportError, match=r"layers\.1\.mlp\.up_proj\.weight .* not the checkpoint's: values differ"
    ):
        check_openvino(path, source)


def test_rows_are_read_from_any_place(source: LanguageSource, tmp_path: Path) -> None:
    path = tmp_path / "ov_int4.xml"
    write_language_openvino(path, source, "ov_int4")
    tensor = open_tensors(path)["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(tensor.rows(3, 8), tensor.rows()[3:8])


def test_int8_is_rounded_by_hand() -> None:
    row = np.zeros((1, 32), dtype=np.float32)
    row[0, :3] = 127.0, -1.4, 0.6  # a scale of 1
    expected = np.zeros((1, 32), dtype=np.float32)
    expected[0, :3] = 127, -1, 1
    np.testing.assert_array_equal(rounded(row, "OV_INT8"), expected)
    assert quantize_int8(row)[""].reshape(-1)[:3].tolist() == [127, -1, 1]


def test_int4_is_rounded_by_hand() -> None:
    row = np.zeros((1, 32), dtype=np.float32)
    row[0, :4] = 10.0, -5.0, 0.6, 2.4  # a scale of 1, a zero of 5
    expected = np.zeros((1, 32), dtype=np.float32)
    expected[0, :4] = 10, -5, 1, 2
    np.testing.assert_array_equal(rounded(row, "OV_INT4"), expected)
    found = quantize_int4(row)
    assert found[""][:2].tolist() == [15 | 0 << 4, 6 | 7 << 4]
    assert (found[".zero"].tolist(), found[".scale"].reshape(-1).tolist()) == ([5 | 0 << 4], [1.0])


@pytest.mark.parametrize("kind", ["OV_INT8", "OV_INT4"])
def test_rounding_twice_changes_nothing_more_than_a_step(kind: str) -> None:
    once = rounded(ROWS, kind)
    assert np.abs(once - ROWS).max() < (0.03 if kind == "OV_INT8" else 0.4)
    zeros = np.zeros((2, 32), dtype=np.float32)
    np.testing.assert_array_equal(rounded(zeros, kind), zeros)
