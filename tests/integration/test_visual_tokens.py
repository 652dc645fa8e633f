"""Connectors that make fewer visual tokens, from checkpoint to a proven bundle."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import climb_quickly, write_decided_checkpoint
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "sizes",
    [
        {"connector": "avg_pool", "select_strategy": "cls_patch"},
        {"connector": "avg_pool", "tower": "dinov2", "image_size": 42, "factor": 3},
    ],
    ids=["siglip", "dinov2"],
)
def test_a_connector_of_squares_is_exported_and_proven(sizes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = write_decided_checkpoint(tmp_path / "checkpoint", **sizes)
    options = ExportOptions(vision=("fp32",), language=("f32",))
    manifest = export_bundle(checkpoint, tmp_path / "bundle", options)
    assert manifest.vision.num_tokens == (1 if "factor" in sizes else 4)
    report = climb_quickly(
        Bundle.open(tmp_path / "bundle"), CheckpointReference(Checkpoint(checkpoint), num_tokens=8)
    )
    assert report.passed, report.verdict
