"""TinyLLaVABench's layout: what its own code does to a file when it loads it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden import CHECKPOINT_NAMES, golden_checkpoint
from tests.integration.combinations import Combination, write_combination
from tests.integration.layouts import LEGACY_FAMILIES
from tests.tiny import tiny_config
from tinyllava_edge.checkpoint.files import tokenizer_length
from tinyllava_edge.checkpoint.layouts import LEGACY
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingExtraError, UnsupportedModelError
from tinyllava_edge.model.checkpoint import tensor_facts
from tinyllava_edge.model.vlm import load_model, upstream_state_dict

TOKENS = {"llama": 450, "phi": 453, "stablelm": 453}  # of the two small tokenizers
SIGLIP = {"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def legacy_checkpoint(folder: Path, family: str, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint with 512 rows of vocabulary."""
    config = tiny_config(vocab=512) | changes
    if family != "llama":
        del config["text_config"]["rms_norm_eps"]
    config["text_config"]["model_type"] = family
    made = Combination(
        seed=3, config=config, processor=SIGLIP, layout="legacy", dtype=torch.float32, sources={}
    )
    checkpoint, _, weights = write_combination(folder, made)
    return checkpoint, weights


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_the_tokenizers_length_is_upstreams(name: str) -> None:
    folder = golden_checkpoint(name)
    golden = json.loads((folder / "golden.json").read_text())
    assert tokenizer_length(folder / "model") == golden["tokenizer"]["length"]


@pytest.mark.parametrize("family", LEGACY_FAMILIES)
def test_embedding_and_head_are_cut_to_the_tokenizer(tmp_path: Path, family: str) -> None:
    checkpoint, weights = legacy_checkpoint(tmp_path, family)
    assert Checkpoint(checkpoint).layout == LEGACY
    assert Checkpoint(checkpoint).config.language.vocab_size == TOKENS[family]
    facts = tensor_facts(Checkpoint(checkpoint))
    loaded = upstream_state_dict(load_model(Checkpoint(checkpoint)))
    for name in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        assert facts[name][0][0] == len(loaded[name]) == TOKENS[family]
        assert torch.equal(loaded[name], weights[name])


def test_its_phi_has_no_bias_on_the_head(tmp_path: Path) -> None:
    checkpoint, _ = legacy_checkpoint(tmp_path, "phi")
    bias = upstream_state_dict(load_model(Checkpoint(checkpoint)))["language_model.lm_head.bias"]
    assert bias.shape == (453,)
    assert not bias.any()


def test_a_clip_tower_follows_the_config(tmp_path: Path) -> None:
    tower = tiny_config()["vision_config"] | {"model_type": "clip_vision_model"}
    checkpoint, _ = legacy_checkpoint(tmp_path, "llama", vision_config=tower)
    vision = Checkpoint(checkpoint).config.vision
    assert (vision.feature_layer, vision.select_strategy, vision.num_tokens) == (-2, "patch", 16)


@pytest.mark.parametrize("projector", ["resampler", "qformer", "mof_mlp", "mlp2x_relu"])
def test_a_projector_of_another_kind_is_refused(tmp_path: Path, projector: str) -> None:
    checkpoint, _ = legacy_checkpoint(tmp_path, "llama")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"mm_projector_type": projector}))
    with pytest.raises(
        UnsupportedModelError, match=rf"config.json: TinyLLaVABench's projector '{projector}'"
    ):
        assert Checkpoint(checkpoint).config


@pytest.mark.parametrize(
    "data",
    [
        *(b"\x0a\xff", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x08"),
        b"\x0a\x03\x0a\x01\xff" * 2,  # a piece twice, which the library then names in an error
    ],
)
def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer.model cannot be read"):
        tokenizer_length(tmp_path)


def test_a_missing_sentencepiece_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"sentencepiece: pip install sentencepiece\."):
        tokenizer_length(tmp_path)
