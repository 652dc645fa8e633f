"""The figures of a comparison on the device, by hand, and the gates that judge them."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.runtimes.trt.engine_bundles import write_engine_bundle
from tinyllava_edge.benchmarks.verify.reference_stored import StoredReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.precisions import PRECISIONS
from tinyllava_edge.runtimes.trt.device_parity import DeviceParity, measure_parity

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_engine_bundle(tmp_path_factory.mktemp("parity") / "bundle", ("fp32",))


class Backend:
    """Gives the reference's embeddings back, with an error in one picture."""

    def __init__(self, bundle: Bundle, picture: int = 0, error: float = 0.0, token: int = 0) -> None:
        self.reference = StoredReference(bundle)
        self.wrong = (picture, token, error)
        self.batches: list[int] = []

    def encode(self, pixels: Floats) -> Floats:
        self.batches.append(len(pixels))
        rows = []
        for one in pixels:
            [index] = [i for i in range(3) if np.array_equal(self.reference.pixels(i), one)]
            row = self.reference.embeddings(index).copy()
            picture, token, error = self.wrong
            if index == picture:
                row[token, 0] += error
            rows.append(row)
        return np.stack(rows)


def test_the_right_embeddings_are_perfect(bundle: Bundle) -> None:
    parity = measure_parity(bundle, Backend(bundle).encode)
    assert (parity.nmse, parity.max_abs, parity.not_finite, parity.pictures) == (0.0, 0.0, 0, 3)
    assert (parity.min_token_cosine, parity.mean_token_cosine) == pytest.approx((1.0, 1.0))
    assert parity.snr_db == np.inf
    assert parity.to_json()["snr_db"] is None
    assert parity.fault("fp32") == ""


@pytest.mark.parametrize(("largest", "batches"), [(1, [1, 1, 1]), (2, [1, 2]), (8, [1, 2])])
def test_single_pictures_and_batches_are_run(bundle: Bundle, largest: int, batches: list[int]) -> None:
    backend = Backend(bundle)
    measure_parity(bundle, backend.encode, largest)
    assert backend.batches == batches


@pytest.mark.parametrize("picture", [0, 1, 2])
def test_the_worst_picture_counts(bundle: Bundle, picture: int) -> None:
    backend = Backend(bundle, picture, error=10.0, token=2)
    parity = measure_parity(bundle, backend.encode)
    right = backend.reference.embeddings(picture).astype(np.float64)
    row, wrong = right[2], right[2].copy()
    wrong[0] += 10
    cosine = row @ wrong / (np.linalg.norm(row) * np.linalg.norm(wrong))
    assert parity.max_abs == pytest.approx(10, rel=1e-5)
    assert parity.min_token_cosine == pytest.approx(cosine, abs=1e-6)
    assert parity.mean_token_cosine == pytest.approx((3 + cosine) / 4, abs=1e-6)
    assert parity.nmse == pytest.approx(100 / right.size / right.var(), rel=1e-4)
    assert parity.snr_db == pytest.approx(10 * np.log10((right**2).sum() / 100), rel=1e-4)
    assert "the gate is" in parity.fault("fp16")


def test_one_nan_fails_and_is_counted(bundle: Bundle) -> None:
    parity = measure_parity(bundle, Backend(bundle, 1, error=np.nan).encode)
    assert parity.not_finite == 1
    assert parity.fault("fp16") == "1 embeddings are NaN or infinite"
    assert parity.to_json()["min_token_cosine"] is None


def test_every_metric_of_every_gate_is_measured_or_is_of_the_graph() -> None:
    known = set(DeviceParity.__dataclass_fields__)
    for precision in PRECISIONS.values():
        of_the_graph = {"connector_nmse", *(f"rounded_{gate.metric}" for gate in precision.gates)}
        assert {gate.metric for gate in precision.gates_at("connector")} <= known | of_the_graph
