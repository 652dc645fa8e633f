"""What was written is compared with the checkpoint, and a difference is named."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.export.conftest import Exported
from tests.export.gguf_files import language_source
from tests.export.test_precision import trial_of
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.export.onnx_file import write_vision_graph
from tinyllava_edge.export.parity import check_language, check_vision
from tinyllava_edge.model.vlm import TinyLlava


def test_one_transposed_weight_in_the_vision_graph_is_found(
    vision_graph: onnx.ModelProto, model: TinyLlava, tmp_path: Path
) -> None:
    trial = trial_of(model)
    (path,) = write_vision_graph(tmp_path / "good.onnx", vision_graph)
    assert check_vision(path, "fp32", trial)["nmse"] < 1e-11
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(vision_graph)
    square = next(tensor for tensor in spoilt.graph.initializer if list(tensor.dims) == [64, 64])
    square.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(square).T.copy(), square.name))
    (path,) = write_vision_graph(tmp_path / "bad.onnx", spoilt)
    with pytest.raises(ExportError, match=r"bad\.onnx is not equal"):
        check_vision(path, "fp32", trial)


def overwrite(path: Path, name: str, change: str) -> None:
    """Change one tensor of a GGUF file in place."""
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == name]
    if change == "one value":
        tensor.data[3, 5] = np.nextafter(tensor.data[3, 5], np.inf)
    elif change == "row order":
        tensor.data[[0, 1]] = tensor.data[[1, 0]]
    elif change == "other tensor":
        (other,) = [t for t in reader.tensors if t.name == name.replace("attn_k", "attn_v")]
        tensor.data[:] = other.data
    reader.data.flush()


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("change", ["one value", "row order", "other tensor"])
def test_a_changed_tensor_in_a_float_file_is_named(
    source: LanguageSource, tmp_path: Path, kind: str, change: str
) -> None:
    path = tmp_path / f"{kind}.gguf"
    write_language_gguf(path, source, kind)
    report = check_language(path, kind, source)
    assert (report["lowest_snr_db"], report["lowest_at"], report["fallback"]) == (None, None, [])
    overwrite(path, "blk.1.attn_k.weight", change)
    with pytest.raises(ExportError, match=r"blk\.1\.attn_k\.weight"):
        check_language(path, kind, source)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_changed_tensor_in_a_quantized_file_is_named(exported: Exported, tmp_path: Path, kind: str) -> None:
    path = Path(shutil.copy(exported.bundle.root / "language" / f"{kind}.gguf", tmp_path))
    source = language_source(exported.checkpoint)
    assert check_language(path, kind, source)["lowest_snr_db"] > 20
    overwrite(path, "blk.0.attn_k.weight", "row order")
    with pytest.raises(ExportError, match=r"blk\.0\.attn_k\.weight"):
        check_language(path, kind, source)


def test_the_file_of_another_model_is_refused(source: LanguageSource, exported: Exported) -> None:
    with pytest.raises(ExportError, match="is not equal"):
        check_language(exported.bundle.root / "language" / "f32.gguf", "f32", source)
