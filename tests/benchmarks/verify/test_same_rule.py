"""What `export` calls verified passes the same stages of `verify`, and the reverse: faults near every gate.

Both look at the same pictures here, so that only the rule can differ. CPU: a tiny model, and nano (slow).
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from tests.export.gguf_files import language_source
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.climb import chosen_variants
from tinyllava_edge.benchmarks.verify.ladder import Ladder
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.stage_vision import check_connector, check_tower
from tinyllava_edge.benchmarks.verify.stage_weights import check_weights
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.parity import (
    VisionTrial,
    check_language,
    check_rounded,
    check_vision,
    vision_trial,
)
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import gates_of
from tinyllava_edge.metrics import snr_db
from tinyllava_edge.precisions import EXACT_TYPES, LANGUAGE_TYPES, PRECISIONS, TENSOR_SNR_DB
from tinyllava_edge.runtimes.base import BackendOptions

NUM_PICTURES = 3
# Over and under the gate of 40 dB, say: by half a decibel.
JUST_PASSES, JUST_FAILS = 0.5, -0.5


@dataclass(frozen=True)
class Both:
    """A checkpoint, a bundle of it whose files a test may change, and what each side compares with."""

    checkpoint: Path
    bundle: Bundle
    reference: CheckpointReference
    trial: VisionTrial

    def ladder(self, *, vision: tuple[str, ...] = (), language: tuple[str, ...] = ()) -> Ladder:
        return Ladder(
            bundle=self.bundle,
            reference=self.reference,
            vision=chosen_variants(self.bundle, "vision", vision),
            language=chosen_variants(self.bundle, "language", language),
            runtime="onnxruntime+llamacpp",
            num_pictures=NUM_PICTURES,
            options=BackendOptions(threads=1),
        )


def both_of(checkpoint: Path, folder: Path, languages: tuple[str, ...]) -> Both:
    export_bundle(
        Checkpoint(checkpoint), folder / "bundle", ExportOptions(vision=tuple(PRECISIONS), language=languages)
    )
    reference = CheckpointReference(Checkpoint(checkpoint), num_tokens=1)
    pixels = np.stack([reference.pixels(index) for index in range(NUM_PICTURES)])
    trial = vision_trial(reference.model, pixels)
    return Both(checkpoint, Bundle.open(folder / "bundle"), reference, trial)


@pytest.fixture(scope="module", params=["tiny", pytest.param("nano", marks=pytest.mark.long)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("same")
    if request.param == "nano":
        return both_of(checkpoint_path("nano"), folder, ("f16", "bf16", "q8_0", "q4_k_m"))
    checkpoint = write_tiny_checkpoint(folder / "wide", hidden=256, heads=4, kv_heads=2, intermediate=512)
    return both_of(checkpoint, folder, tuple(LANGUAGE_TYPES))


@pytest.fixture
def restored(both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test changes in the open bundle is not refused, and as it was behind the test."""
    monkeypatch.setattr("tinyllava_edge.bundle._check_state", lambda path, state, entry: state)
    kept = shutil.copytree(both.bundle.root, tmp_path / "kept")
    yield
    for part in ("vision", "language"):
        shutil.copytree(kept / part, both.bundle.root / part, dirs_exist_ok=True)


def export_takes_vision(both: Both, name: str) -> bool:
    path = both.bundle.root / "vision" / f"{name}.onnx"
    try:
        if PRECISIONS[name].is_rounded:
            check_rounded(onnx.load(path), name, both.trial)
        if "cpu" in PRECISIONS[name].runs_on:
            check_vision(path, name, both.trial)
    except ExportError:
        return False
    return True


def verify_takes_vision(both: Both, name: str) -> bool:
    ladder = both.ladder(vision=(name,))
    results = [*check_tower(ladder), *check_connector(ladder)]
    judged = {(result.stage, check.metric) for result in results for check in result.checks if check.gate}
    asked = {(stage, gate.metric) for stage in ("tower", "connector") for gate in gates_of(stage, name)}
    assert judged == asked, "verify left a gate out"
    return all(result.status == "passed" for result in results)


def add_to_bias(path: Path, wanted: str, share: float, rows: npt.NDArray[np.float32]) -> None:
    """Move one bias of a graph in every channel, by a share of the weakest picture's root mean square."""
    proto = onnx.load(path)
    names = sorted(tensor.name for tensor in proto.graph.initializer if tensor.name.endswith(wanted))
    (bias,) = [tensor for tensor in proto.graph.initializer if tensor.name == names[-1]]
    values = numpy_helper.to_array(bias)
    rms = min(float(np.sqrt(np.mean(picture.astype(np.float64) ** 2))) for picture in rows)
    sign = np.where(np.arange(len(values)) % 2, 1, -1)
    moved = (values.astype(np.float64) + sign * share * rms).astype(values.dtype)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    onnx.save(proto, path)


def share_at_gate(name: str, stage: str, off_db: float) -> float:
    """Error over signal, both as amplitudes, some decibels above or below the tightest gate."""
    limits = {gate.metric: gate.limit for gate in gates_of(stage, name)}
    tightest = min(limits.get("connector_nmse", 1.0), limits.get("nmse", 1.0))
    least_db = limits.get("snr_db") or -10 * np.log10(tightest)
    return float(10 ** (-(least_db + off_db) / 20))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("stage", ["tower", "connector"])
@pytest.mark.parametrize("off_db", [JUST_PASSES, JUST_FAILS, -3.0])
@pytest.mark.parametrize("name", PRECISIONS)
def test_vision_graphs_are_taken_by_both_or_by_none(both: Both, name: str, stage: str, off_db: float) -> None:
    bias, rows = {
        "tower": (".mlp.fc2.bias", both.trial.tower),
        "connector": ("connector.2.bias", both.trial.embeddings),
    }[stage]
    path = both.bundle.root / "vision" / f"{name}.onnx"
    add_to_bias(path, bias, share_at_gate(name, stage, off_db), rows)
    taken = verify_takes_vision(both, name)
    assert export_takes_vision(both, name) is taken
    if off_db == -3.0:
        assert not taken, "the fault was not seen"


@pytest.mark.parametrize("name", PRECISIONS)
def test_honest_vision_graphs_are_taken_by_both(both: Both, name: str) -> None:
    assert export_takes_vision(both, name)
    assert verify_takes_vision(both, name)


def export_takes_language(both: Both, name: str) -> bool:
    try:
        path = both.bundle.root / "language" / f"{name}.gguf"
        check_language(path, name, language_source(both.checkpoint))
    except ExportError:
        return False
    return True


def verify_takes_language(both: Both, name: str) -> bool:
    (result,) = check_weights(both.ladder(language=(name,)))
    return result.status == "passed"


def values_of(tensor: gguf.ReaderTensor) -> npt.NDArray[np.float32]:
    return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def damage_to(path: Path, name: str, source: npt.NDArray[np.float32], *, fails: bool) -> float:
    """Turn the lowest bit of so many bytes that a tensor is just over its gate, or just under; returns dB."""
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == name]
    kind = tensor.tensor_type.name
    least = np.inf if kind in EXACT_TYPES else TENSOR_SNR_DB[kind]
    raw, honest = tensor.data.view(np.uint8).reshape(-1), tensor.data.view(np.uint8).reshape(-1).copy()
    order = np.random.default_rng(0).permutation(len(raw))

    def at(count: int) -> float:
        raw[:] = honest
        raw[order[:count]] ^= 1
        return snr_db(source, values_of(tensor))

    if least == np.inf:
        return at(int(fails))
    low, high = 0, len(raw)
    while high - low > 1:  # `low` passes, `high` fails
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) >= least else (low, middle)
    return at(high if fails else low)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", LANGUAGE_TYPES)
def test_language_files_are_taken_by_both_or_by_none(both: Both, name: str, fails: bool) -> None:
    variants = {variant.name for variant in both.bundle.manifest.variants}
    if name not in variants:
        pytest.skip(f"not exported here: {name}")
    path, tensor = both.bundle.root / "language" / f"{name}.gguf", "blk.1.ffn_up.weight"
    parameters = dict(both.reference.model.language_model.named_parameters())
    source = parameters["model.layers.1.mlp.up_proj.weight"].detach().numpy()
    reached = damage_to(path, tensor, source, fails=fails)
    assert export_takes_language(both, name) is not fails, f"{reached:.2f} dB"
    assert verify_takes_language(both, name) is not fails, f"{reached:.2f} dB"
