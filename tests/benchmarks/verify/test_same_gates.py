"""A file that is not the checkpoint's is refused by `export`'s own check, and fails in `verify`."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.export.gguf_files import language_source
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.ladder import Ladder, StageResult
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.stage_weights import check_weights
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.parity import check_language
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle

from .faults import Fault, a_scale_a_step_off, a_unit_in_the_last_place

Edit = Callable[[gguf.GGUFReader], None]


def zeros(reader: gguf.GGUFReader) -> None:
    """A scale of zero in every block: 0 dB."""
    for tensor in reader.tensors:
        if tensor.tensor_type.name.startswith("TQ"):
            tensor.data[:] = 0


def a_unit_of_bfloat16(reader: gguf.GGUFReader) -> None:
    """Every BF16 value is 0.4 to 0.8 % too large, the next one of its 8 bits: about 45 dB."""
    for tensor in reader.tensors:
        if tensor.tensor_type.name == "BF16":
            tensor.data.view(np.uint16)[:] += 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return write_tiny_checkpoint(folder, hidden=256, heads=4, kv_heads=2, intermediate=512)


@pytest.fixture(scope="module")
def honest_wide(checkpoint: Path) -> Path:
    """A bundle of widths that types with blocks of 256 apply to."""
    names = ("f16", "bf16", "q8_0", "tq2_0", "tq1_0")
    export_bundle(
        Checkpoint(checkpoint), checkpoint.parent / "bundle", ExportOptions(vision=("fp32",), language=names)
    )
    return checkpoint.parent / "bundle"


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> CheckpointReference:
    return CheckpointReference(Checkpoint(checkpoint), num_tokens=1)


def weights(root: Path, name: str, reference: CheckpointReference) -> StageResult:
    bundle = Bundle.open(root)
    (result,) = check_weights(
        Ladder(
            bundle=bundle,
            reference=reference,
            vision=(),
            language=(bundle.variant("language", name),),
            runtime="onnxruntime+llamacpp",
            num_pictures=1,
        )
    )
    return result


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("tq1_0", zeros),
        ("tq2_0", zeros),
        ("f16", a_unit_in_the_last_place),
        ("bf16", a_unit_of_bfloat16),
        ("q8_0", a_scale_a_step_off),
    ],
)
def test_both_refuse_what_either_refuses(
    name: str,
    edit: Edit,
    checkpoint: Path,
    honest_wide: Path,
    reference: CheckpointReference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert weights(honest_wide, name, reference).status == "passed"
    fault = Fault("", "weights", "", None, edit_gguf=edit, language=name)
    bundle = fault.plant(honest_wide, tmp_path / "bundle", monkeypatch)
    assert weights(bundle.root, name, reference).status == "failed"
    path = bundle.root / "language" / f"{name}.gguf"
    with pytest.raises(ExportError, match="is not equal to"):
        check_language(path, name, language_source(checkpoint))
