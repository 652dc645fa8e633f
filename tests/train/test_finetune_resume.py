"""A run that is killed and resumed gives the losses and the weights of one that was not."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.own_data import LORA, changed, own_options, write_own_data, write_small_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import OutputExistsError, UsageError
from tinyllava_edge.train import snapshots, training_log
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.finetune import _facts, finetune
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.snapshots import newest_whole

STEPS = 32
NUM_KILLS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_own_data(folder)
    write_small_checkpoint(folder / "source")
    return folder


@pytest.fixture(scope="module")
def options(folder: Path) -> FinetuneOptions:
    return own_options(folder, folder / "source", tune=LORA, num_train_epochs=STEPS // 4, save_steps=3)


@pytest.fixture(scope="module")
def whole(folder: Path, options: FinetuneOptions) -> Path:
    """The run that nothing interrupts."""
    outcome = finetune(folder / "whole", options)
    assert outcome.steps == STEPS
    assert outcome.last_loss < outcome.first_loss
    return folder / "whole"


def _losses(log: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["learning_rate"]) for line in read_lines(log)]


def _assert_same(out: Path, whole: Path) -> None:
    assert _losses(out / "training_log.jsonl") == _losses(whole / "training_log.jsonl")
    for name in ("model.safetensors", "config.json", "tinyllava_edge.json"):
        hashes = {hashlib.sha256((path / name).read_bytes()).hexdigest() for path in (out, whole)}
        assert len(hashes) == 1, name


def _count_lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _interrupt(out: Path, options: FinetuneOptions, at_step: int) -> None:
    """Stop a run in this process, as Ctrl-C would, once its log has `at_step` lines."""

    def stop(log: training_log.TrainingLog, **values: Any) -> None:
        write(log, **values)
        if values["step"] == at_step:
            raise KeyboardInterrupt

    write = training_log.TrainingLog.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log.TrainingLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(out, options)


def test_ten_kills_at_random_moments_leave_losses_and_weights_bit_for_bit(
    folder: Path, options: FinetuneOptions, whole: Path, forks: ForkServerContext
) -> None:
    """SIGKILL to processes forked from one that has imported torch; the last one runs to the end."""
    rng = random.Random(0)
    out, log = folder / "killed", folder / "killed.work" / "training_log.jsonl"
    killed_at = []
    for target in sorted(rng.randrange(STEPS - 1) for _ in range(NUM_KILLS)):
        process = forks.Process(target=finetune, args=(out, options), kwargs={"resume": True})
        process.start()
        while _count_lines(log) < target and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(_count_lines(log))
    assert not out.exists()
    assert len(set(killed_at)) > 3  # not all at one place
    process = forks.Process(target=finetune, args=(out, options), kwargs={"resume": True})
    process.start()
    process.join()
    assert process.exitcode == 0
    _assert_same(out, whole)
    assert [path.name for path in folder.iterdir() if "killed" in path.name] == ["killed"]


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    folder: Path, options: FinetuneOptions, whole: Path
) -> None:
    out, work = folder / "damaged", folder / "damaged.work"
    _interrupt(out, options, 10)
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]
    weights = work / "checkpoint-9" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with (work / "training_log.jsonl").open("a") as file:
        file.write('{"stage": "finetu')  # a line cut short
    outcome = finetune(out, options, resume=True)
    assert outcome.resumed_at == 6
    _assert_same(out, whole)
    assert not work.exists()


def test_an_unfinished_run_is_neither_lost_nor_mixed_up(folder: Path, options: FinetuneOptions) -> None:
    out, work = folder / "unfinished", folder / "unfinished.work"
    _interrupt(out, options, 4)
    with pytest.raises(OutputExistsError, match=r"unfinished run\. Give --resume .* or --force"):
        finetune(out, options)
    with pytest.raises(UsageError, match=r"unfinished run has seed 0, this command 1"):
        finetune(out, changed(options, seed=1), resume=True)
    assert (work / "checkpoint-3").is_dir()
    outcome = finetune(out, changed(options, num_train_epochs=1), force=True)
    assert (outcome.steps, outcome.resumed_at) == (4, 0)
    assert not work.exists()


def test_a_finished_run_is_not_run_again(folder: Path, options: FinetuneOptions, whole: Path) -> None:
    """As after a kill between the output's renaming and the end."""
    before = (whole / "model.safetensors").stat().st_mtime_ns
    (folder / "whole.work" / "checkpoint-30").mkdir(parents=True)
    assert finetune(whole, options, resume=True).resumed_at == STEPS
    assert not (folder / "whole.work").exists()
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(OutputExistsError):
        finetune(whole, changed(options, seed=1), resume=True)


def test_a_folder_that_is_no_run_is_not_removed(folder: Path, options: FinetuneOptions) -> None:
    (folder / "mine.work").mkdir()
    (folder / "mine.work" / "letters.txt").write_text("Dear")
    with pytest.raises(OutputExistsError, match="remove it"):
        finetune(folder / "mine", options, force=True)
    assert (folder / "mine.work" / "letters.txt").exists()
    shutil.rmtree(folder / "mine.work")


def test_without_snapshots_a_run_starts_again(folder: Path, options: FinetuneOptions) -> None:
    out = folder / "none"
    short = changed(options, num_train_epochs=1, save_steps=0)
    _interrupt(out, short, 3)
    assert json.loads((folder / "none.work" / "run.json").read_text())["num_train_epochs"] == 1
    assert finetune(out, short, resume=True).resumed_at == 0
    assert [step for step, _, _ in _losses(out / "training_log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("seal", [b"[" * 100_000, b"\xff", b"[]", b'{"sha256": []}', b'{"sha256": {"a": 1}}'])
def test_a_snapshot_with_a_damaged_seal_counts_as_never_taken(tmp_path: Path, seal: bytes) -> None:
    step = tmp_path / "checkpoint-4"
    step.mkdir()
    (step / "optimizer.pt").write_bytes(b"a state")
    (step / "seal.json").write_bytes(seal)
    assert newest_whole(tmp_path) is None
    assert not step.exists()


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        save_file(change(load_file(checkpoint / "model.safetensors")), checkpoint / "model.safetensors")

    return apply


def _saved(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(checkpoint: Path) -> None:
        torch.save(change(torch.load(checkpoint / name, weights_only=False)), checkpoint / name)

    return apply


def _no_trainers_state(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").write_text("[]")


STATES: dict[str, Callable[[Path], None]] = {
    "no weights": lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
    "a weight is missing": _weights(lambda state: dict(list(state.items())[1:])),
    "a weight of another shape": _weights(
        lambda state: {name: weight[..., :1].contiguous() for name, weight in state.items()}
    ),
    "no optimizer": _saved("optimizer.pt", lambda state: 3),
    "another optimizer": _saved("optimizer.pt", lambda state: {**state, "param_groups": []}),
    "random state of another size": _saved("rng_state.pth", lambda state: {**state, "cpu": state["cpu"][:9]}),
    "no state of a trainer": _no_trainers_state,
}


def test_a_state_of_something_else_is_named(folder: Path, options: FinetuneOptions) -> None:
    out, work = folder / "else", folder / "else.work"
    _interrupt(out, options, 4)
    shutil.copytree(work / "checkpoint-3", folder / "good")
    for name, change in STATES.items():
        shutil.rmtree(work / "checkpoint-3")
        shutil.copytree(folder / "good", work / "checkpoint-3")
        change(work / "checkpoint-3")
        (work / "checkpoint-3" / "seal.json").unlink()
        reseal(work / "checkpoint-3")
        with pytest.raises(UsageError, match="not a state of this run") as caught:
            finetune(out, options, resume=True)
        assert str(work / "checkpoint-3") in str(caught.value), name


def reseal(checkpoint: Path) -> None:
    """Give what was changed the hashes that it has now."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()}
    (checkpoint / "seal.json").write_text(json.dumps({"sha256": files}))


def test_what_is_kept_of_a_run_and_what_ends_it_belong_to_it(
    folder: Path, options: FinetuneOptions, whole: Path, tmp_path: Path
) -> None:
    """A finished run without an adapter is not the one that is asked for with it."""
    with pytest.raises(OutputExistsError):
        finetune(whole, replace(options, save_adapter=True), resume=True)
    assert finetune(whole, options, resume=True).steps == STEPS
    facts = []
    for text in ("[1]", "[2]"):
        (tmp_path / "eval.json").write_text(text)
        stopping = replace(
            options,
            eval_data=tmp_path / "eval.json",
            training=replace(options.training, early_stopping_patience=1),
        )
        facts.append(_facts(stopping, Checkpoint(options.source)))
    assert facts[0].keys() == facts[1].keys()
    assert [key for key in facts[0] if facts[0][key] != facts[1][key]] == ["eval_data_sha256"]


def test_a_damaged_snapshot_that_another_process_of_the_run_removes_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint-2").mkdir()

    def is_removed_meanwhile(path: Path) -> bool:
        shutil.rmtree(path)
        return False

    monkeypatch.setattr(snapshots, "_is_whole", is_removed_meanwhile)
    assert newest_whole(tmp_path) is None
