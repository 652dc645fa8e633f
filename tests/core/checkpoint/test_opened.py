"""Reading weights: whole files load strictly, and a file that is damaged, foreign or hostile is named."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.model.checkpoint import iter_tensors, tensor_facts
from tinyllava_edge.model.vlm import load_model, upstream_state_dict

HEAD = "language_model.lm_head.weight"
QUERY = "vision_tower._vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("whole") / "tiny", hidden=32, intermediate=48, layers=1
    )


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def rewrite(checkpoint: Path, change: Callable[[State], Any]) -> None:
    path = checkpoint / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def split_into_shards(
    checkpoint: Path, change_index: Callable[[dict[str, str]], Any] = lambda m: None
) -> None:
    """Two shards and their index, as save_pretrained leaves them."""
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = {
        key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(sorted(state))
    }
    for name in set(names.values()):
        save_file({key: state[key] for key in state if names[key] == name}, checkpoint / name)
    change_index(names)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


def split_into_pickles(checkpoint: Path) -> None:
    """Three sub-directories of pickles, as upstream's first training stage leaves them."""
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    prefixes = {
        "language_model": ("language_model.", ""),
        "vision_tower": ("vision_tower._vision_tower.", ""),
        "connector": ("connector._connector.", "_connector."),
    }
    for part, (prefix, kept) in prefixes.items():
        (checkpoint / part).mkdir()
        tensors = {kept + key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        torch.save(tensors, checkpoint / part / "pytorch_model.bin")


def assert_refused(checkpoint: Path, *named: str, **options: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(Checkpoint(checkpoint, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for name in named:
        assert name in message


def same_weights(one: Path, other: Path, **options: Any) -> bool:
    first, second = (upstream_state_dict(load_model(Checkpoint(path, **options))) for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_every_layout_loads_the_same_weights(whole: Path, checkpoint: Path, tmp_path: Path) -> None:
    sharded, pickled = checkpoint, Path(shutil.copytree(whole, tmp_path / "pickled"))
    split_into_shards(sharded)
    split_into_pickles(pickled)
    assert [Checkpoint(path).layout for path in (whole, sharded, pickled)] == [
        "flat safetensors",
        "sharded safetensors",
        "three sub-directories",
    ]
    assert same_weights(whole, sharded)
    assert same_weights(whole, pickled, allow_pickle=True)
    assert dict(tensor_facts(Checkpoint(whole))) == dict(tensor_facts(Checkpoint(sharded)))


def test_the_weights_are_those_of_the_file(whole: Path) -> None:
    loaded = upstream_state_dict(load_model(Checkpoint(whole)))
    stored = load_file(whole / "model.safetensors")
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[key], stored[key]) for key in stored)


def test_only_one_part_can_be_read(whole: Path) -> None:
    names = [name for name, _ in iter_tensors(Checkpoint(whole), part="connector")]
    assert sorted(names) == [
        "connector.0.bias",
        "connector.0.weight",
        "connector.2.bias",
        "connector.2.weight",
    ]


def test_the_hash_changes_with_weights_and_config(checkpoint: Path) -> None:
    first = Checkpoint(checkpoint).sha256
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    second = Checkpoint(checkpoint).sha256
    rewrite(checkpoint, lambda state: state[HEAD].add_(1))
    assert len({first, second, Checkpoint(checkpoint).sha256}) == 3


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 0.5, 0.99, -1])
def test_a_truncated_file_is_named(checkpoint: Path, kept: float) -> None:
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    length = len(data) - 1 if kept < 0 else int(kept if kept >= 1 else len(data) * kept)
    path.write_bytes(data[:length])
    assert_refused(checkpoint, "model.safetensors: damaged")


def raw_safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


LYING_HEADERS = {
    "a huge header length": raw_safetensors({}, length=2**63),
    "a header longer than the file": raw_safetensors({}, length=10**6),
    "no JSON": raw_safetensors(b"not json"),
    "a list": raw_safetensors([1]),
    "deep nesting": raw_safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "data past the end": raw_safetensors({HEAD: entry(0, 4000, shape=(1000,))}, bytes(4)),
    "a shape that is not its size": raw_safetensors({HEAD: entry(0, 4, shape=(1000, 1000))}, bytes(4)),
    "a shape that overflows": raw_safetensors({HEAD: entry(0, 4, shape=(2**40, 2**40))}, bytes(4)),
    "an end before its begin": raw_safetensors({HEAD: entry(4, 0)}, bytes(4)),
    "overlapping tensors": raw_safetensors({HEAD: entry(0, 4), QUERY: entry(0, 4)}, bytes(4)),
    "a hole in the data": raw_safetensors({HEAD: entry(4, 8)}, bytes(8)),
    "an unknown dtype": raw_safetensors({HEAD: entry(0, 4, dtype="Q4_K")}, bytes(4)),
    "no tensors": raw_safetensors({}),
}


@pytest.mark.parametrize("content", LYING_HEADERS.values(), ids=LYING_HEADERS.keys())
def test_a_header_that_lies_is_refused(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    assert_refused(checkpoint, str(checkpoint))


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda state: state.pop(QUERY))
    assert_refused(checkpoint, str(checkpoint), "missing", QUERY.replace("._vision_tower", ""))


@pytest.mark.parametrize(
    "key", ["language_model.model.layers.7.mlp.up_proj.weight", "connector._connector.9.bias"]
)
def test_a_tensor_that_no_part_has_is_named(checkpoint: Path, key: str) -> None:
    rewrite(checkpoint, lambda state: state.update({key: torch.zeros(2)}))
    assert_refused(checkpoint, str(checkpoint), key.replace("._connector", ""), "left over")


def test_a_tensor_of_no_part_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda state: state.update({"lora_A.weight": torch.zeros(2)}))
    assert_refused(checkpoint, "model.safetensors", "lora_A.weight")


def test_a_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda state: state.update({HEAD: state[HEAD].T.contiguous()}))
    assert_refused(checkpoint, HEAD, "[32, 450]", "[450, 32]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_named(checkpoint: Path, value: float) -> None:
    rewrite(checkpoint, lambda state: state[HEAD].view(-1)[5].fill_(value))
    assert_refused(checkpoint, HEAD, "NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_a_weight_of_whole_numbers_is_named(checkpoint: Path, dtype: torch.dtype) -> None:
    """QLoRA in 8 bits leaves such tensors without their scales (docs/sources/tinyllava.md#lora-directory)."""
    rewrite(checkpoint, lambda state: state.update({HEAD: state[HEAD].to(dtype)}))
    assert_refused(checkpoint, HEAD, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 1 << 24),
        ("intermediate_size", 1 << 24),
        ("vocab_size", 1 << 24),
        ("num_hidden_layers", 1 << 20),
        ("num_hidden_layers", 2),
    ],
)
@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_config_that_promises_another_model_is_refused_before_memory_is_taken(
    checkpoint: Path, part: str, key: str, value: int
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config[part][key] = value
    (checkpoint / "config.json").write_text(json.dumps(config))
    started = time.process_time()
    assert_refused(checkpoint, str(checkpoint))
    assert time.process_time() - started < 10


def test_a_directory_without_weights_says_what_it_expected(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, "holds no weights", "model.safetensors")
    assert_refused(checkpoint / "absent", "absent")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "x.bin",
        7,
        None,
        "",
        "..",
        "a\0.safetensors",
    ],
)
def test_a_shard_outside_the_checkpoint_is_refused(checkpoint: Path, name: Any) -> None:
    shutil.copy(checkpoint / "model.safetensors", checkpoint.parent / "outside.safetensors")
    split_into_shards(checkpoint, lambda names: names.update({HEAD: name}))
    assert_refused(checkpoint, "index.json", HEAD)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    split_into_shards(checkpoint)
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    assert_refused(checkpoint, "model-00002-of-00002.safetensors: missing")


def test_a_tensor_in_two_shards_is_named(checkpoint: Path) -> None:
    split_into_shards(checkpoint)
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    first, second = (load_file(path) for path in shards)
    key = min(first)
    save_file(second | {key: first[key]}, shards[1])
    assert_refused(checkpoint, shards[1].name, key)


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_of_another_shape_is_refused(checkpoint: Path, index: str) -> None:
    split_into_shards(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text(index)
    assert_refused(checkpoint, "index.json")
