"""The vision half on ONNX Runtime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from tests.runtimes import bundles
from tests.runtimes.contract import VisionContract
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.runtimes import ort


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "fp32.onnx"
    bundles.write_tiny_onnx(path)
    return path


@pytest.fixture
def pixels() -> npt.NDArray[np.float32]:
    shape = (2, 3, bundles.IMAGE_SIZE, bundles.IMAGE_SIZE)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


class TestContract(VisionContract):
    @pytest.fixture
    def backend(self, graph: Path) -> Iterator[ort.OnnxVision]:
        backend = ort.OnnxVision(graph, bundles.vision_spec(), name="onnxruntime fp32", threads=1)
        yield backend
        backend.close()

    @pytest.fixture
    def shape(self) -> tuple[int, int]:
        return (bundles.NUM_TOKENS, bundles.HIDDEN)


def test_the_graph_is_computed(tmp_path: Path, pixels: npt.NDArray[np.float32]) -> None:
    kernel = bundles.write_tiny_onnx(tmp_path / "fp32.onnx", seed=3)
    backend = ort.OnnxVision(tmp_path / "fp32.onnx", bundles.vision_spec(), name="x", threads=2)
    patch = pixels[1, :, bundles.PATCH :, : bundles.PATCH]  # lower left: row 1, column 0, so token 2
    expected = np.einsum("hcij,cij->h", kernel, patch)
    np.testing.assert_allclose(backend.encode(pixels)[1, 2], expected, atol=1e-4)


def test_a_graph_of_another_width_than_the_manifest_says_is_refused(graph: Path) -> None:
    with pytest.raises(BundleError, match=r"expected .*128.* found .*64"):
        ort.OnnxVision(graph, bundles.vision_spec(hidden=128), name="x", threads=1)


def test_a_damaged_graph_is_refused_with_what_onnxruntime_says(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:500])
    with pytest.raises(BackendError, match="ONNX Runtime cannot load"):
        ort.OnnxVision(graph, bundles.vision_spec(), name="x", threads=1)


def test_another_provider_than_the_one_asked_for_is_an_error(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ONNX Runtime itself takes the CPU here, with a warning only: this machine has no CUDA.
    monkeypatch.setattr(ort, "PROVIDERS", ["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs an onnxruntime without CUDA")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(BackendError, match="asked"):
        ort.OnnxVision(graph, bundles.vision_spec(), name="x", threads=1)


def test_a_failing_run_is_reported(graph: Path, pixels: npt.NDArray[np.float32]) -> None:
    backend = ort.OnnxVision(graph, bundles.vision_spec(), name="vision of the test", threads=1)
    backend._output_shape = (9, 9)
    with pytest.raises(BackendError, match="vision of the test: expected embeddings"):
        backend.encode(pixels)
