"""A run that is killed and resumed gives the losses and the weights of one that was not."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.own_data import LORA, changed, own_options, write_own_data, write_small_checkpoint
from tinyllava_edge.errors import OutputExistsError, UsageError
from tinyllava_edge.train import loop
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.snapshots import Snapshots

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

    def stop(log: loop.TrainingLog, **values: Any) -> None:
        write(log, **values)
        if values["step"] == at_step:
            raise KeyboardInterrupt

    write = loop.TrainingLog.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.TrainingLog, "write", stop)
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
    assert [path.name for path in sorted(work.glob("step-*"))] == ["step-00000006", "step-00000009"]
    content = (work / "step-00000009" / "state.pt").read_bytes()
    (work / "step-00000009" / "state.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
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
    assert (work / "step-00000003").is_dir()
    outcome = finetune(out, changed(options, num_train_epochs=1), force=True)
    assert (outcome.steps, outcome.resumed_at) == (4, 0)
    assert not work.exists()


def test_a_finished_run_is_not_run_again(folder: Path, options: FinetuneOptions, whole: Path) -> None:
    """As after a kill between the output's renaming and the end."""
    before = (whole / "model.safetensors").stat().st_mtime_ns
    (folder / "whole.work" / "step-00000030").mkdir(parents=True)
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
    assert json.loads((folder / "none.work" / "run.json").read_text())["epochs"] == 1
    assert finetune(out, short, resume=True).resumed_at == 0
    assert [step for step, _, _ in _losses(out / "training_log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("seal", [b"[" * 100_000, b"\xff", b"[]", b'{"sha256": []}'])
def test_a_snapshot_with_a_damaged_seal_counts_as_never_taken(tmp_path: Path, seal: bytes) -> None:
    step = tmp_path / "step-00000004"
    step.mkdir()
    (step / "state.pt").write_bytes(b"a state")
    (step / "seal.json").write_bytes(seal)
    assert Snapshots(tmp_path, torch.nn.Linear(1, 1), 2).step == 0
    assert not step.exists()


def test_a_snapshot_of_another_optimizer_is_named(folder: Path, options: FinetuneOptions) -> None:
    out, work = folder / "older", folder / "older.work"
    _interrupt(out, options, 10)
    for step in work.glob("step-*"):
        state = torch.load(step / "state.pt", weights_only=True)
        state["optimization"][0]["param_groups"] *= 2
        torch.save(state, step / "state.pt")
        seal = {"sha256": hashlib.sha256((step / "state.pt").read_bytes()).hexdigest()}
        (step / "seal.json").write_text(json.dumps(seal))
    with pytest.raises(UsageError, match="another version of this program"):
        finetune(out, options, resume=True)


STATES: dict[str, Any] = {
    "no dictionary": lambda state: [state],
    "no weights": lambda state: {**state, "trained": None},
    "a weight is missing": lambda state: {**state, "trained": dict(list(state["trained"].items())[1:])},
    "a weight of another shape": lambda state: {
        **state,
        "trained": {name: weight[..., :1, None] for name, weight in state["trained"].items()},
    },
    "no optimizer": lambda state: {**state, "optimization": 3},
    "random state of another size": lambda state: {**state, "rng": state["rng"][:9]},
}


def test_a_state_of_something_else_is_named(folder: Path, options: FinetuneOptions) -> None:
    out, work = folder / "else", folder / "else.work"
    _interrupt(out, options, 4)
    (step,) = work.glob("step-*")
    good = torch.load(step / "state.pt", weights_only=True)
    for name, change in STATES.items():
        torch.save(change(good), step / "state.pt")
        seal = {"sha256": hashlib.sha256((step / "state.pt").read_bytes()).hexdigest()}
        (step / "seal.json").write_text(json.dumps(seal))
        with pytest.raises(UsageError, match="not a state of this run") as caught:
            finetune(out, options, resume=True)
        assert str(step) in str(caught.value), name
