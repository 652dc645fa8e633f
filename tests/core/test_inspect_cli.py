"""`inspect` of each kind of thing, against figures that come from elsewhere."""

import json
from pathlib import Path

import pytest

from tests.golden import CHECKPOINT_NAMES, golden_checkpoint, shared_fixtures
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BundleError, CheckpointError
from tinyllava_edge.inspect_cli import inspect_checkpoint, inspect_gguf

SHARED = shared_fixtures()


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_a_golden_checkpoint_has_the_parameters_and_tokens_that_upstream_counted(name: str) -> None:
    folder = golden_checkpoint(name)
    golden = json.loads((folder / "golden.json").read_text())
    facts = inspect_checkpoint(Checkpoint(folder / "model", sources=SHARED / "sources", allow_pickle=True))
    assert facts["tokens_per_picture"] == golden["image_tokens"]
    if totals := golden.get("parameters"):
        found = {name: part["parameters"] for name, part in facts["parts"].items()}
        assert found == {name: totals[name] for name in found}


def test_memory_is_counted_from_the_sizes(tmp_path: Path) -> None:
    facts = inspect_checkpoint(
        Checkpoint(write_tiny_checkpoint(tmp_path / "c", layers=2, kv_heads=2, heads=4, hidden=64))
    )
    assert facts["kv_bytes_per_token"] == 2 * 2 * 16 * 2 * 2  # layers, heads, width, keys and values, bytes
    language = facts["parts"]["language_model"]["parameters"]
    assert facts["weight_bytes"]["language f16"] == 2 * language
    assert facts["exported_vision_layers"] == "2 of 3"


def test_a_damaged_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(BundleError, match=r"a\.gguf"):
        inspect_gguf(path)


def test_headers_that_config_json_does_not_describe_are_an_error(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "c", layers=2)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers\.1\..*is left over"):
        inspect_checkpoint(Checkpoint(checkpoint))
