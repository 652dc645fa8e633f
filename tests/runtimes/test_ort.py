"""The vision half on ONNX Runtime."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from tests.runtimes import bundles
from tests.runtimes.contract import VisionContract
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.runtimes import ort
from tinyllava_edge.runtimes.base import BackendOptions


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


def test_cuda_that_the_wheel_does_not_have_is_an_error(graph: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs an onnxruntime without CUDA")
    with pytest.raises(
        BackendError, match=r"has no CUDA\. Put .* pip uninstall -y onnxruntime onnxruntime-gpu && "
    ):
        ort.OnnxCudaVision(graph, bundles.vision_spec(), name="x", threads=1)


def test_two_wheels_that_overwrite_each_other_are_an_error_for_cuda(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "distribution", lambda name: name)
    with pytest.raises(BackendError, match="both installed and overwrite each other"):
        ort.OnnxCudaVision(graph, bundles.vision_spec(), name="x", threads=1)
    ort.OnnxVision(graph, bundles.vision_spec(), name="x", threads=1)  # either has the CPU


class _CpuInstead(ort.OnnxCudaVision):
    """A CUDA session whose provider is replaced by the CPU, which has the same way of binding."""

    device = "cpu"
    asked: ClassVar[list[Any]] = []

    def _providers(self) -> list[Any]:
        self.asked.append(super()._providers())
        return [ort.CPU]


def test_what_is_bound_to_the_device_comes_back(
    graph: Path, pixels: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "check_cuda_offered", lambda: None)
    backend = _CpuInstead(graph, bundles.vision_spec(), name="x", threads=1, memory_limit_bytes=5 << 30)
    plain = ort.OnnxVision(graph, bundles.vision_spec(), name="x", threads=1)
    for value in (pixels, pixels[:1], np.asfortranarray(pixels)):
        np.testing.assert_array_equal(backend.encode(value), plain.encode(value))
    (cuda, options), cpu = _CpuInstead.asked.pop()
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "enable_cuda_graph": "0",
        "do_copy_in_default_stream": "1",
        "gpu_mem_limit": str(5 << 30),
    }


ON_GPU_WHEEL = """
import sys
from pathlib import Path
import onnxruntime
from tests.runtimes import bundles
from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes import ort
from tinyllava_edge.runtimes.base import BackendOptions
print("offers", *ort.offered_providers())
ort._is_distributed = lambda name: name.endswith("gpu")  # the environment of the tests has the other one too
try:
    ort.OnnxCudaVision(Path(sys.argv[1]), bundles.vision_spec(), name="x", threads=1)
except BackendError as error:
    print(error)
"""


@pytest.mark.network
def test_the_genuine_gpu_wheel_takes_the_cpu_silently_and_we_do_not(graph: Path, tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists() or sys.version_info < (3, 11):
        pytest.skip("needs a machine without an NVIDIA driver, and Python 3.11")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "gpu")]
    subprocess.run([*pip, "onnxruntime-gpu"], check=True)
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(tmp_path / "gpu"), str(root), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", ON_GPU_WHEEL, str(graph)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    offers, error = result.stdout.splitlines()
    assert "CUDA" in offers.split()
    assert "asked ONNX Runtime for ['CUDAExecutionProvider', 'CPUExecutionProvider'], it took ['CPU" in error


@pytest.mark.parametrize(
    ("architecture", "features", "saturates"),
    [
        ("x86_64", ("avx2",), True),
        ("AMD64", ("avx2", "avx512f"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512_vnni",), False),
        ("aarch64", ("asimddp",), False),
    ],
)
def test_int8_is_computed_without_saturation_where_the_processor_has_no_vnni(
    monkeypatch: pytest.MonkeyPatch, architecture: str, features: tuple[str, ...], saturates: bool
) -> None:
    cpu = replace(read_cpu(), architecture=architecture, features=features)
    assert cpu.saturates_int8 is saturates
    monkeypatch.setattr(ort, "read_cpu", lambda: cpu)
    options = ort.session_options(1)
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize(
    ("features", "there", "taken"),
    [
        (("asimd", "asimdhp"), ("fp16", "int8"), "int8"),
        (("asimd", "asimdhp"), ("fp32", "fp16", "int8"), "fp32"),
        (("asimd", "asimdhp"), ("fp16",), "fp16"),
        (("asimd",), ("fp16", "int8"), "fp16"),
        (("avx2",), ("fp16", "int8"), "fp16"),
    ],
)
def test_float16_is_no_default_where_the_processor_would_sum_in_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    features: tuple[str, ...],
    there: tuple[str, ...],
    taken: str,
) -> None:
    monkeypatch.setattr(ort, "read_cpu", lambda: replace(read_cpu(), features=features))
    bundle = bundles.write_bundle(tmp_path / "bundle")
    (vision,) = [variant for variant in bundle.manifest.variants if variant.part == "vision"]
    variants = tuple(vision.model_copy(update={"name": name}) for name in there)
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"variants": variants}))
    with closing(ort.open_vision(changed, BackendOptions(threads=1))) as backend:
        assert backend.name == f"onnxruntime {taken}"
