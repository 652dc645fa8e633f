"""Any combination of parts, sizes, dtype and layout: the bundle computes what torch does on the checkpoint.

The golden checkpoints are a sample; these are drawn. `make test` runs the first few seeds,
TINYLLAVA_EDGE_COMBINATIONS=200 as many as that (from TINYLLAVA_EDGE_FIRST_SEED on).
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.combinations import draw_combination, write_combination
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import gates_of
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.metrics import nmse
from tinyllava_edge.model.vlm import TinyLlava, load_model, upstream_state_dict
from tinyllava_edge.runtimes.model import open_bundle

pytestmark = pytest.mark.slow
PICTURE = Path(__file__).parents[1] / "fixtures" / "images" / "cat_231x153.png"
TURNS = (
    [("<image>\nWhat is in the picture?", None)],
    [("<image>\nDescribe it.", "A cat on a sofa."), ("What colour is it?", None)],
    [("What is two plus two?", None)],
)
FIRST = int(os.environ.get("TINYLLAVA_EDGE_FIRST_SEED", "0"))
COUNT = int(os.environ.get("TINYLLAVA_EDGE_COMBINATIONS", "5"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_a_drawn_checkpoint_is_exported_as_torch_computes_it(seed: int, tmp_path: Path) -> None:
    made = draw_combination(seed)
    checkpoint, sources, weights = write_combination(tmp_path, made)
    reference = load_model(Checkpoint(checkpoint, sources=sources, allow_pickle=True))
    assert_same_weights(reference, weights)
    options = ExportOptions(vision=("fp32",), language=("f32",))
    opened = Checkpoint(checkpoint, sources=sources, allow_pickle=True)
    export_bundle(opened, tmp_path / "bundle", options)
    family = opened.config.language.architecture
    (gate,) = gates_of("logits", "f32", family)
    with open_bundle(tmp_path / "bundle", kv_type="f32") as model:
        how = model.bundle.manifest.vision.preprocessing
        pixels = torch.from_numpy(preprocess(open_picture(PICTURE), how))[None]
        for turns in TURNS:
            pictures = [PICTURE] if "<image>" in turns[0][0] else []
            expected = reference.logits(model.tokenize(turns), pixels if pictures else None).numpy()
            found = model.logits(turns, pictures)
            assert np.isfinite(expected).all()
            assert nmse(expected, found) <= gate.limit, str(made)


def assert_same_weights(model: TinyLlava, expected: dict[str, torch.Tensor]) -> None:
    found = upstream_state_dict(model)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
