"""adapter_config.json is read as PEFT itself reads it; what it could not be read for is refused by name."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError
from tinyllava_edge.model.lora_config import LoraConfig

MODULES = [
    *(f"language_model.model.layers.{n}.self_attn.{name}_proj" for n in (0, 1, 10, 11) for name in "qkvo"),
    *(f"language_model.model.layers.{n}.mlp.{name}_proj" for n in (0, 1, 11) for name in ("up", "down")),
    "language_model.lm_head",
    "vision_tower._vision_tower.vision_model.encoder.layers.1.self_attn.q_proj",
    "connector._connector.0",
]


def read(folder: Path, **values: Any) -> LoraConfig:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "bias": "none", "r": 4, "lora_alpha": 8} | values))
    return LoraConfig(path)


@pytest.mark.parametrize(
    "patterns",
    [
        {},
        {"q_proj": 2},
        {"layers.1.self_attn.q_proj": 2, "q_proj": 16},
        {"q_proj": 16, "layers.1.self_attn.q_proj": 2},
        {r"layers\.1\..*": 3},
        {r"layers\.1\d\..*(q|v)_proj": 3, "v_proj": 5},
        {r".*\.[01]\.mlp\..*_proj": 2, ".*": 1},
        {"language_model.model.layers.0.mlp.up_proj": 7},
        {"roj": 9, "proj": 9, "_proj": 9},
        {r"(up|down)_pro.": 6, r"self_attn\.\w{1,2}_proj": 12},
    ],
    ids=str,
)
def test_rank_and_alpha_are_pefts(tmp_path: Path, patterns: dict[str, int]) -> None:
    ours = read(tmp_path, rank_pattern=patterns, alpha_pattern={key: 3 * v for key, v in patterns.items()})
    for module in MODULES:
        rank = patterns.get(get_pattern_key(list(patterns), module), 4)
        alpha = {key: 3 * v for key, v in patterns.items()}.get(get_pattern_key(list(patterns), module), 8)
        assert ours.rank_and_scale(module) == (rank, alpha / rank)


@pytest.mark.parametrize(
    ("rank_pattern", "alpha_pattern"),
    [({"q_proj": 2}, {"layers.1.self_attn.q_proj": 2}), ({"q_pro|x": 2}, {})],
)
def test_what_versions_of_peft_read_otherwise_is_refused(
    tmp_path: Path, rank_pattern: dict[str, int], alpha_pattern: dict[str, int]
) -> None:
    """0.10 takes one key for both, and puts no brackets around an alternative (tuners/lora/model.py)."""
    ours = read(tmp_path, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)
    with pytest.raises(CheckpointError, match=r"rank_pattern and alpha_pattern give .* PEFT 0.10"):
        ours.rank_and_scale("language_model.model.layers.1.self_attn.q_proj")


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]},
        {"target_modules": ["language_model.lm_head"]},
        {"target_modules": r".*language_model.*\.(q|k)_proj"},
        {"target_modules": r"language_model\.model\.layers\.\d\..*"},
        {"target_modules": "q_proj"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "lay..s"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["blocks"]},
    ],
    ids=str,
)
def test_the_adapted_modules_are_pefts(tmp_path: Path, values: dict[str, Any]) -> None:
    ours, pefts = read(tmp_path, **values), PeftConfig(**values)
    found = {module for module in MODULES if ours.has(module)}
    assert found == {module for module in MODULES if check_target_module_exists(pefts, module)}


@pytest.mark.parametrize("pattern", ["(a|aa)+b", "(a|a)" * 30 + "b"])
def test_a_pattern_without_end_is_stopped(tmp_path: Path, pattern: str) -> None:
    ours = read(tmp_path, rank_pattern={pattern: 4})
    ours._left = 0.3
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"adapter_config.json: matching .* takes too long"):
        ours.rank_and_scale("language_model." + "a" * 60)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "values",
    [
        {"rank_pattern": {"(": 1}},
        {"rank_pattern": {"(?=a)": 1}},
        {"rank_pattern": {r"(a)\1": 1}},
        {"rank_pattern": {"(a){e}": 1}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "x"}},
        {"alpha_pattern": {"q_proj": True}},
        {"r": 10**400},
        {"target_modules": 5},
        {"target_modules": {"q_proj": 1}},
        {"target_modules": [1]},
        {"target_modules": "("},
        {"target_modules": "q_proj", "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": ["1"]},
        {"target_modules": ["q_proj"], "layers_pattern": "a|b"},
        {"target_modules": ["q_proj"], "layers_pattern": 3},
    ],
    ids=str,
)
def test_what_peft_does_not_write_is_named(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"adapter_config.json: .*{next(iter(values))}"):
        read(tmp_path, **values)


@pytest.mark.parametrize(
    "name", ["modules_to_save", "exclude_modules", "trainable_token_indices", "lora_bias", "something_new"]
)
def test_what_would_merge_otherwise_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"adapter_config.json: {name} is not supported"):
        read(tmp_path, **{name: ["x"]})
