"""Exports of random checkpoints: what they take does not grow with the model."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from tests.tiny import TOKENIZER_FOLDER, TOKENIZER_VOCAB
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.model.checkpoint import iter_tensors, tensor_facts
from tinyllava_edge.model.vlm import load_model
from tools import random_checkpoint
from tools.random_checkpoint import SHAPES, Shape, write_random_checkpoint
from tools.real_size import bounds, main, measure_export

MEGABYTE = 1_000_000


def shape_of(*, hidden: int, inner: int, layers: int, vision_hidden: int, vision_inner: int) -> Shape:
    """Llama and SigLIP of 4 layers; the parameters are counted by hand."""
    width, wide = vision_hidden, vision_inner
    vision_layer = 4 * (width * width + width) + 2 * 2 * width + 2 * width * wide + wide + width
    parts = (
        2 * TOKENIZER_VOCAB * hidden + hidden,
        layers * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden),
        width * 3 * 14 * 14 + width + 16 * width + 2 * width,  # patches, positions, last norm
        5 * vision_layer - 2 * width + width,  # the head is a fifth with one norm, and a learned query
        width * hidden + hidden + hidden * hidden + hidden,  # connector
    )
    language = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": TOKENIZER_VOCAB,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "image_size": 56,
        "intermediate_size": wide,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "patch_size": 14,
    }
    processor = {**SHAPES["phi2-siglip"].processor, "size": {"height": 56, "width": 56}}
    return Shape(
        language=language,
        vision=vision,
        processor=processor,
        tokenizer=TOKENIZER_FOLDER.name,
        parameters=sum(parts),
    )


SMALL = shape_of(hidden=64, inner=128, layers=2, vision_hidden=48, vision_inner=96)
# A language model of many small layers, and a tower of few wide ones.
DEEP = shape_of(hidden=512, inner=1536, layers=40, vision_hidden=768, vision_inner=3072)


@pytest.mark.slow
@pytest.mark.long
def test_an_export_holds_neither_the_language_model_nor_a_third_copy_of_the_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # small matrices: threads would only wait for each other
    found = measure_export(
        "deep", DEEP, TOKENIZER_FOLDER.parent, tmp_path, vision="fp32,fp16", language="f16,q8_0"
    )
    peaks = found["peak_anonymous_bytes"]
    # Bytes of the language model in float32; PyPI's CUDA build of torch holds 133 MB more than the CPU's.
    whole = 4 * 136_817_152 + (140 * MEGABYTE if torch.version.cuda else 0)
    assert found["files"]["language f16"] > 2 * 136_817_152
    assert 200 * MEGABYTE < peaks["reference"] < whole  # torch and everything else included
    assert 200 * MEGABYTE < peaks["language"] < whole
    tower_twice = found["bound_bytes"]["vision"] - 1500 * MEGABYTE
    assert peaks["vision"] < 500 * MEGABYTE + tower_twice
    assert found["bound_bytes"]["language"] == 1500 * MEGABYTE + 2 * 4 * 512 * 1536
    assert list(tmp_path.iterdir()) == []


def test_a_random_checkpoint_is_sharded_as_upstream_does_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 100_000)
    monkeypatch.setattr(random_checkpoint, "CHUNK", 1000)
    write_random_checkpoint(tmp_path / "checkpoint", SMALL, TOKENIZER_FOLDER.parent)
    shards = sorted((tmp_path / "checkpoint").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    model = load_model(Checkpoint(tmp_path / "checkpoint"))
    assert sum(parameter.numel() for parameter in model.parameters()) == SMALL.parameters
    tensors = dict(iter_tensors(Checkpoint(tmp_path / "checkpoint")))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert 0.9 < float(tensors["language_model.model.norm.weight"].float().mean()) < 1.1
    weight = tensors["language_model.model.layers.1.mlp.up_proj.weight"].float()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    facts = tensor_facts(Checkpoint(tmp_path / "checkpoint"))
    largest = max(prod(shape) for name, (shape, _) in facts.items() if name.startswith("language_model."))
    assert bounds(Checkpoint(tmp_path / "checkpoint"))["language"] == 1500 * MEGABYTE + 8 * largest


def test_a_wrong_count_is_noticed(tmp_path: Path) -> None:
    wrong = replace(SMALL, parameters=SMALL.parameters - 1)
    with pytest.raises(AssertionError, match="parameters, expected"):
        write_random_checkpoint(tmp_path / "checkpoint", wrong, TOKENIZER_FOLDER.parent)


def test_a_missing_tokenizer_and_an_unknown_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tokenizers DIR with qwen2"):
        write_random_checkpoint(tmp_path / "checkpoint", SHAPES["qwen2-0.5b-siglip"], tmp_path)
    with pytest.raises(UsageError, match="'phi-9' is not known"):
        main(["phi-9"], tmp_path, tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="export ended with code 2"):
        measure_export("small", SMALL, TOKENIZER_FOLDER.parent, tmp_path, vision="fp4", language="f16")
    assert list(tmp_path.iterdir()) == []
