"""nanoVLM from its own files to an answer: the bundle's parts against what upstream's code computed."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration import conformance
from tests.nanovlm import FOLDER, SOURCES, opened, oracle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import UnsupportedModelError
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.metrics import nmse
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.samples import open_samples

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("generation", ["tokens", "global"])  # a head of its own and none; both prompts
def test_a_bundle_answers_as_upstream(generation: str, tmp_path: Path) -> None:
    expected = oracle(generation)
    options = ExportOptions(vision=("fp32",), language=("f32",))
    manifest = export_bundle(Checkpoint(FOLDER / generation, sources=SOURCES), tmp_path / "bundle", options)
    assert manifest.vision.num_tokens == expected.embeddings.shape[1]
    with open_bundle(tmp_path / "bundle", kv_type="f32") as model:
        features, rows = conformance.onnx_vision(model, expected.pixels)
        np.testing.assert_allclose(features, expected.tower, atol=1e-4)
        np.testing.assert_allclose(rows, expected.embeddings, atol=1e-4)
        prompt = expected.prompts["one_turn"]
        answer = model.answer(prompt.turns, expected.pictures[:1], max_tokens=len(prompt.greedy))
        assert expected.eos_id not in prompt.greedy
        assert "".join(answer) == model.tokenizer.decode(prompt.greedy)
        for prompt in expected.prompts.values():
            assert model.tokenize(prompt.turns, num_pictures=1) == prompt.ids
            logits = model.logits(prompt.turns, expected.pictures[:1])
            assert nmse(prompt.logits, logits) < 1e-9
            greedy = conformance.bundle_greedy(model, prompt.ids, expected.pictures[:1], len(prompt.greedy))
            assert greedy == prompt.greedy


def test_training_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"config.json: a checkpoint of nanoVLM .* not trained"):
        open_samples(opened("chat"), FinetuneOptions(data=FOLDER, images=FOLDER, source=FOLDER / "chat"))
