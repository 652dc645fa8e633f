"""Every vision precision on a real ViT's weights. Not in `make test`.

pytest -m network -s tests/integration/test_real_tower.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.integration.dinov2 import write_checkpoint
from tests.integration.vision_precisions import SYMMETRIC, measure, print_table
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.precisions import PRECISIONS
from tools.dinov2 import download_onnx

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download_onnx(tmp_path_factory.mktemp("package"))


def test_the_lifted_tower_computes_what_the_package_computes(original: Path, tmp_path: Path) -> None:
    """The last norm's output, tapped inside their graph."""
    proto = onnx.load(original)
    (last,) = [node for node in proto.graph.node if "backbone.layernorm.bias" in node.input]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], 1, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([last.output[0]], {"input_image": pixels.numpy()})
    tower: Any = load_model(Checkpoint(write_checkpoint(original, tmp_path / "checkpoint"))).vision_tower
    tower.config = replace(tower.config, feature_layer=-1, select_strategy="cls_patch")
    with torch.no_grad():
        rows = tower.model.layernorm(tower(pixels))
    np.testing.assert_allclose(rows.numpy(), expected, atol=5e-3)


def test_every_precision_passes_its_gate_on_pictures_that_it_was_not_fitted_to(original: Path) -> None:
    rows = measure(original, image_size=224)
    print_table(rows)
    assert [row["precision"] for row in rows] == [*PRECISIONS, SYMMETRIC]
    found = {row["precision"]: row for row in rows}
    assert found["fp16"]["snr_db"] > 45
    assert found["fp16"]["islands"] == 0
    assert found["bf16"]["snr_db"] > 31
    assert found["int8"]["snr_db"] > 22
    assert found["int8_fp16"]["snr_db"] > 22
