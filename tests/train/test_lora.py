"""Low-rank updates of any part, in 4 bits, and gone on from. A tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.own_data import own_options, write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingExtraError, UnsupportedModelError, UsageError
from tinyllava_edge.model.checkpoint import iter_tensors
from tinyllava_edge.train.asked import check_packages, read_asked
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.options import FinetuneOptions, parse_tune
from tinyllava_edge.train.written import checkpoint_mark


def _options(folder: Path, source: Path, tune: str, **changes: Any) -> FinetuneOptions:
    return own_options(folder, source, tune=parse_tune(tune), **changes)


def _changed(source: Path, out: Path) -> set[str]:
    before = dict(iter_tensors(Checkpoint(source)))
    return {name for name, tensor in iter_tensors(Checkpoint(out)) if not torch.equal(tensor, before[name])}


def test_updates_of_tower_and_connector_alone_are_merged(source: Path, tmp_path: Path) -> None:
    write_own_data(tmp_path)
    finetune(
        tmp_path / "out", _options(tmp_path, source, "connector=lora+vision_tower=lora", save_adapter=True)
    )
    changed = _changed(source, tmp_path / "out")
    assert {name.split(".")[0] for name in changed} == {"connector", "vision_tower"}
    assert all(
        name.endswith(".weight") and "norm" not in name and "embedding" not in name for name in changed
    )
    modules = {name.split(".")[2] for name in load_file(tmp_path / "out/adapter/adapter_model.safetensors")}
    assert modules == {"connector", "vision_tower"}


def test_a_run_goes_on_from_the_updates_of_another(source: Path, tmp_path: Path) -> None:
    """What no step has changed is what the first run left; other sizes are the adapter's."""
    write_own_data(tmp_path)
    finetune(tmp_path / "first", _options(tmp_path, source, "llm=lora", save_adapter=True))
    adapter = tmp_path / "first" / "adapter"
    asked = read_asked(str(source), None, {"rank": None})
    assert (asked.lora.rank, asked.lora.alpha) == (128, 256)
    found = _options(tmp_path, source, "llm=lora", adapter=adapter, learning_rate=1e-30, save_adapter=True)
    finetune(tmp_path / "second", found)
    first, second = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    sidecar = json.loads((tmp_path / "second" / "tinyllava_edge.json").read_text())
    assert len(sidecar["adapter_sha256"]) == 64
    config = adapter / "adapter_config.json"
    text = config.read_text()
    for changes, error in (
        ({"use_rslora": True}, CheckpointError),
        ({"alpha_pattern": {"q_proj": 1}}, CheckpointError),
        ({"use_dora": True}, UnsupportedModelError),
    ):
        config.write_text(json.dumps({**json.loads(text), **changes}))
        with pytest.raises(error, match=f"adapter_config.json: .*{next(iter(changes))}"):
            finetune(tmp_path / "third", found, force=True)
    config.write_text(text)
    odd = dict(first)
    odd.pop(min(odd))
    save_file(odd, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is missing, this run's is"):
        finetune(tmp_path / "third", found, force=True)
    with pytest.raises(UsageError, match="--adapter needs --recipe lora"):
        _options(tmp_path, source, "llm", adapter=adapter)


def test_updates_that_are_kept_unmerged_are_read_over_their_base(source: Path, tmp_path: Path) -> None:
    """The same weights as of the run that merges; nothing but the updates is written."""
    write_own_data(tmp_path)
    finetune(tmp_path / "merged", _options(tmp_path, source, "llm=lora"))
    finetune(tmp_path / "kept", _options(tmp_path, source, "llm=lora", keep_adapter=True))
    assert not (tmp_path / "kept" / "model.safetensors").exists()
    kept = dict(iter_tensors(Checkpoint(tmp_path / "kept", sources=source.parent)))
    for name, tensor in iter_tensors(Checkpoint(tmp_path / "merged")):
        torch.testing.assert_close(kept[name], tensor, rtol=1e-5, atol=1e-6)
    assert checkpoint_mark(tmp_path / "kept") == ""  # so that --force may replace it
    with pytest.raises(UsageError, match="--keep-adapter writes updates of the language model"):
        _options(tmp_path, source, "connector+llm=lora", keep_adapter=True)


def test_qlora_says_which_package_it_needs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.train.asked.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*'bitsandbytes>=\d"):
        check_packages(_options(tmp_path, source, "connector+llm=qlora"))


def test_qlora_leaves_the_values_that_it_was_trained_against(source: Path, tmp_path: Path) -> None:
    """At a rate that changes nothing, the output is the source rounded to 4 bits by bitsandbytes."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    write_own_data(tmp_path)
    options = _options(tmp_path, source, "connector+llm=qlora", learning_rate=1e-30)
    finetune(tmp_path / "out", options)
    before = dict(iter_tensors(Checkpoint(source)))
    changed = _changed(source, tmp_path / "out")
    assert {name.rsplit(".", 2)[1] for name in changed} >= {"q_proj", "o_proj", "gate_proj", "down_proj"}
    for name, tensor in iter_tensors(Checkpoint(tmp_path / "out")):
        if name in changed:
            packed, state = functional.quantize_4bit(before[name], compress_statistics=True, quant_type="nf4")
            torch.testing.assert_close(tensor, functional.dequantize_4bit(packed, state), rtol=0, atol=1e-6)
    sidecar = json.loads((tmp_path / "out" / "tinyllava_edge.json").read_text())
    assert sidecar["merge_error"] <= 1e-5
