"""`inspect` of each kind of thing, against figures that come from elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import CHECKPOINT_NAMES, golden_checkpoint, shared_fixtures
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BundleError, CheckpointError, MissingExtraError
from tinyllava_edge.export.inspect_cli import inspect_checkpoint, inspect_gguf
from tinyllava_edge.model.tokenizer_sentencepiece import read_sentencepiece

SHARED = shared_fixtures()
LINES = Path(__file__).parents[1] / "fixtures/lines"


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_a_golden_checkpoint_has_the_parameters_and_tokens_that_upstream_counted(name: str) -> None:
    folder = golden_checkpoint(name)
    golden = json.loads((folder / "golden.json").read_text())
    facts = inspect_checkpoint(Checkpoint(folder / "model", sources=SHARED / "sources", allow_pickle=True))
    assert facts["tokens_per_picture"] == golden["image_tokens"]
    if totals := golden.get("parameters"):
        found = {name: part["parameters"] for name, part in facts["parts"].items()}
        assert found == {name: totals[name] for name in found}


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_checkpoint_is_shown_without_torch_and_what_is_missing_is_listed(
    tmp_path: Path, has_weights: bool
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    expected = inspect_checkpoint(Checkpoint(folder))
    if not has_weights:
        (folder / "model.safetensors").unlink()
        (folder / "preprocessor_config.json").unlink()
        (folder / "zero_to_fp32.py").write_text("output_dir")
    code = "import sys; sys.modules['torch'] = None; from tinyllava_edge.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(folder), "--json"], capture_output=True, text=True
    )
    assert run.returncode == (0 if has_weights else 1), run.stderr
    facts = json.loads(run.stdout)
    assert "only torch can tell" in facts["checked"] if has_weights else facts["checked"].startswith("no")
    if has_weights:
        assert {**facts, "checked": ""} == {**expected, "checked": "", "schema": 1}
    else:
        first, second = facts["missing"]
        assert "ZeRO shards of DeepSpeed" in first
        assert (
            "no preprocessor_config.json, nor processor_config.json with the key 'image_processor'" in second
        )
        assert facts["tokens_per_picture"] == expected["tokens_per_picture"]
        assert facts["parts"]["connector"] == {"architecture": "mlp2x_gelu", "parameters": None, "dtype": ""}


def test_a_file_beside_the_one_that_is_read_is_shown(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    assert "not_read" not in inspect_checkpoint(Checkpoint(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    assert inspect_checkpoint(Checkpoint(folder))["not_read"].startswith("model.safetensors.index.json:")


def test_a_package_that_a_tokenizer_needs_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LINES / "llava_llama-inside-pad/model"
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    facts = inspect_checkpoint(Checkpoint(folder, sources=LINES / "sources"))
    assert facts["layout"] == "LLaVA's code line"
    assert any("pip install sentencepiece" in reason for reason in facts["missing"])
    with pytest.raises(MissingExtraError, match="pip install sentencepiece protobuf"):
        read_sentencepiece(folder / "tokenizer.model")


def test_a_checkpoint_without_its_config_json_is_shown(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    (folder / "config.json").unlink()
    assert inspect_checkpoint(Checkpoint(folder))["missing"] == [
        f"{folder / 'config.json'}: no such file. A checkpoint directory needs it."
    ]


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
