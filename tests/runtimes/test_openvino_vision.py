"""The vision half on OpenVINO."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("openvino")

from tests.runtimes import bundles
from tests.runtimes.contract import VisionContract
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import NANO, bundle_path
from tinyllava_edge.compute_classes import BF16_CPU, FLOAT32_CPU, INT8_CPU, ComputeClass
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.metrics import snr_db
from tinyllava_edge.runtimes import openvino_library, openvino_vision, ort
from tinyllava_edge.runtimes.base import BackendOptions

HAS_BF16 = bool({"avx512_bf16", "amx_bf16"} & set(read_cpu().features))


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
    def backend(self, graph: Path) -> Iterator[openvino_vision.OpenVinoVision]:
        name = "openvino fp32"
        with closing(openvino_vision.OpenVinoVision(graph, bundles.vision_spec(), name=name)) as backend:
            yield backend

    @pytest.fixture
    def shape(self) -> tuple[int, int]:
        return (bundles.NUM_TOKENS, bundles.HIDDEN)


def test_the_graph_is_computed(tmp_path: Path, pixels: npt.NDArray[np.float32]) -> None:
    kernel = bundles.write_tiny_onnx(tmp_path / "fp32.onnx", seed=3)
    backend = openvino_vision.OpenVinoVision(tmp_path / "fp32.onnx", bundles.vision_spec(), name="x")
    patch = pixels[1, :, bundles.PATCH :, : bundles.PATCH]  # lower left: row 1, column 0, so token 2
    expected = np.einsum("hcij,cij->h", kernel, patch)
    np.testing.assert_allclose(backend.encode(pixels)[1, 2], expected, atol=1e-4)
    np.testing.assert_array_equal(backend.encode(np.asfortranarray(pixels)), backend.encode(pixels))


def test_a_graph_of_another_width_than_the_manifest_says_is_refused(graph: Path) -> None:
    with pytest.raises(BundleError, match=r"expected .*128.* found .*64"):
        openvino_vision.OpenVinoVision(graph, bundles.vision_spec(hidden=128), name="x")


def test_a_damaged_graph_is_refused_with_what_openvino_says(graph: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:500])
    with pytest.raises(
        BackendError, match=r"OpenVINO 20\d\d\.\S+ cannot read it \(Model can't be parsed\)\.$"
    ):
        openvino_vision.OpenVinoVision(graph, bundles.vision_spec(), name="x")


@pytest.mark.parametrize("compute", [BF16_CPU, INT8_CPU])
@pytest.mark.parametrize("lacks", [[], ["FP32", "INT8"]])
def test_bfloat16_without_its_instructions_is_one_clear_line(lacks: list[str], compute: ComputeClass) -> None:
    with pytest.raises(
        BackendError, match=r"no bfloat16 products .* Take the runtime without -bf16 and -int8\.$"
    ):
        openvino_library.check_computes(lacks, compute)
    openvino_library.check_computes(lacks, FLOAT32_CPU)


def test_another_value_than_the_one_asked_for_is_an_error(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenVINO itself takes float32 for a type that it does not compute in.
    monkeypatch.setitem(openvino_library._PRECISIONS, FLOAT32_CPU, "u8")
    with pytest.raises(BackendError, match=r"OpenVINO"):
        openvino_vision.OpenVinoVision(graph, bundles.vision_spec(), name="x")


def test_int8_is_refused_where_sums_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    (vision,) = [variant for variant in bundle.manifest.variants if variant.part == "vision"]
    variants = (vision, vision.model_copy(update={"name": "int8"}))
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"variants": variants}))
    cpu = replace(read_cpu(), architecture="x86_64", features=("avx2",))
    monkeypatch.setattr(openvino_vision, "read_cpu", lambda: cpu)
    with pytest.raises(BackendError, match=r"cuts sums of int8 .* onnxruntime, which does\.$"):
        openvino_vision.open_vision(changed, BackendOptions(vision="int8"))
    openvino_vision.open_vision(changed, BackendOptions(vision="fp32")).close()


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 products")
def test_bfloat16_is_other_numbers_within_its_gates_and_float32_is_onnxruntimes() -> None:
    bundle, options = Bundle.open(bundle_path(NANO)), BackendOptions(threads=2)
    side = bundle.manifest.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    rows = []
    for opened in (ort.open_vision, openvino_vision.open_vision, openvino_vision.open_vision_bf16):
        with closing(opened(bundle, options)) as backend:
            rows.append(backend.encode(pixels))
    expected, plain, halves = rows
    assert snr_db(expected, plain) > 70
    assert 30 < snr_db(expected, halves) < 60


CHILD = """
import os, sys
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.openvino_vision import open_vision
vision = open_vision(Bundle.open(sys.argv[1]), BackendOptions(threads=2))
child = os.fork()
if child == 0:
    del vision
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_ends() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CHILD, str(bundle_path(NANO))]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (result.stdout, result.stderr) == ("5\n", "")
