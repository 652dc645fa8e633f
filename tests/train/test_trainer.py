"""What the Trainer is given and does: rates, arithmetic, validation, and what can go wrong on the way."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from rich.progress import Progress

from tests.golden import CHECKPOINT_NAMES, shared_fixtures
from tests.train.own_data import LORA, changed, own_options, write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError, DiskFullError, UsageError
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.train import snapshots, trainer, training_log, tuning
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.fit import training_arguments
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions, parse_tune, with_changes
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.samples import open_samples
from tinyllava_edge.train.snapshots import newest_whole
from tinyllava_edge.train.trainer import TinyLlavaTrainer
from tinyllava_edge.train.training_log import JsonLines
from tinyllava_edge.train.training_options import TrainingOptions, Tuning
from tinyllava_edge.train.tuning import arithmetic, choose_trained, keep_frozen_in


@pytest.fixture
def options(source: Path, tmp_path: Path) -> FinetuneOptions:
    write_own_data(tmp_path)
    return own_options(tmp_path, source, save_steps=2)


def _trainer(options: FinetuneOptions, work: Path) -> Any:
    source = Checkpoint(options.source)
    model, samples = load_model(source), open_samples(source, options)
    samples.conversations = dict(enumerate(read_data(options)))
    choose_trained(model, options)
    wrapped = TinyLlavaForTraining(model)
    args = training_arguments(options, work, wrapped.layer_classes, has_validation=False)
    return TinyLlavaTrainer(
        wrapped, samples, options, work, args=args, callbacks=[JsonLines(None, Progress())]
    )


def test_each_part_has_its_rate_and_matrices_alone_decay(options: FinetuneOptions, tmp_path: Path) -> None:
    tune = parse_tune("connector+llm=lora+vision_tower")
    tune = with_changes(tune, rates={"connector": 1e-3, "vision_tower": 1e-6})
    tune["connector"] = replace(tune["connector"], weight_decay=0.05)
    options = replace(changed(options, learning_rate=2e-4, weight_decay=0.1), tune=tune)
    made = _trainer(options, tmp_path / "work")
    optimizer = made.create_optimizer()
    found = {
        (group["lr"], group["weight_decay"]): {parameter.ndim for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert {key: 1 in dims for key, dims in found.items()} == {
        (1e-6, 0.1): False,
        (1e-6, 0.0): True,
        (1e-3, 0.05): False,
        (1e-3, 0.0): True,
        (2e-4, 0.1): False,  # the low-rank updates
    }
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    counted = sum(len(group["params"]) for group in optimizer.param_groups)
    assert counted == len(made.model.learned_parameters())


def test_the_warm_up_is_rounded_up_as_upstreams(options: FinetuneOptions, tmp_path: Path) -> None:
    made = _trainer(options, tmp_path / "work")
    made.create_optimizer()
    schedule: Any = made.create_scheduler(num_training_steps=101)
    assert made.args.warmup_steps == 4  # ceil(3.03)
    rates = []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0] / 3e-3)
        made.optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0, 0.25, 0.5, 0.75])


def test_a_tower_is_tuned_from_a_layer_on(options: FinetuneOptions) -> None:
    """The last of its two layers, and neither embeddings nor norms behind them."""
    options = replace(options, tune={"vision_tower": Tuning(from_layer=1)})
    model = load_model(Checkpoint(options.source))
    choose_trained(model, options)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".layers.1." in name for name in trained)
    with pytest.raises(UsageError, match="no layer 2"):
        choose_trained(model, replace(options, tune={"vision_tower": Tuning(from_layer=2)}))


def test_what_is_frozen_is_kept_in_16_bits_and_comes_out_as_it_was(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    """And what is trained in float32, whose checkpoints hold nothing else."""
    model = load_model(Checkpoint(options.source))
    choose_trained(model, replace(options, tune=LORA))
    keep_frozen_in(model, torch.bfloat16)
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    options = replace(changed(options, precision="bf16", num_train_epochs=2), tune=parse_tune("connector"))
    finetune(tmp_path / "out", options)
    before, after = (load_model(Checkpoint(path)) for path in (options.source, tmp_path / "out"))
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, after.get_parameter(name)) != name.startswith("connector."), name


def test_workers_and_accumulation_change_nothing_but_the_work(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    """Six records a step at once, or two and two and two of another process, to rounding."""
    options = changed(options, per_device_train_batch_size=6, max_steps=3)
    split = changed(
        options, per_device_train_batch_size=2, gradient_accumulation_steps=3, dataloader_num_workers=1
    )
    losses = []
    for number, each in enumerate((options, split)):
        finetune(tmp_path / str(number), each)
        losses.append([line["loss"] for line in read_lines(tmp_path / str(number) / "training_log.jsonl")])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def test_the_run_stops_where_the_validation_set_is_learned_no_better_and_keeps_the_best(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    """At a rate at which it soon gets worse."""
    options = replace(options, eval_data=options.data, eval_images=options.images)
    options = changed(options, learning_rate=0.3, eval_steps=1, early_stopping_patience=2, num_train_epochs=9)
    outcome = finetune(tmp_path / "out", options)
    lines = read_lines(tmp_path / "out" / "training_log.jsonl")
    looks = {line["step"]: line["loss"] for line in lines if line["stage"] == "validation"}
    assert outcome.steps == max(looks) < 36
    best = min(looks, key=lambda step: looks[step])
    assert best == outcome.steps - 2
    again = changed(options, early_stopping_patience=0, learning_rate=1e-9, warmup_ratio=0.0, max_steps=1)
    again = replace(again, eval_data=options.data, eval_images=options.images, source=tmp_path / "out")
    finetune(tmp_path / "again", again)
    (look,) = [
        line
        for line in read_lines(tmp_path / "again" / "training_log.jsonl")
        if line["stage"] == "validation"
    ]
    assert look["loss"] == pytest.approx(looks[best], rel=1e-4)


def test_a_validation_set_with_a_bad_record_is_refused(options: FinetuneOptions, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"id": "v", "image": "none.png", "conversations": []}]))
    with pytest.raises(DataError, match=r"other\.json: 1 bad of 1"):
        finetune(tmp_path / "out", replace(options, eval_data=other, eval_images=tmp_path))


def test_a_loss_that_is_not_finite_ends_a_run_with_its_snapshots_kept(
    options: FinetuneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step's; the run goes on from the second."""
    whole = finetune(tmp_path / "whole", options)
    forward, calls = TinyLlavaForTraining.forward, []

    def once_nan(model: TinyLlavaForTraining, **inputs: Any) -> Any:
        calls.append(1)
        return {"loss": forward(model, **inputs)["loss"] * (float("nan") if len(calls) == 3 else 1)}

    monkeypatch.setattr(TinyLlavaForTraining, "forward", once_nan)
    with pytest.raises(DataError, match="the loss of step 3 is not finite"):
        finetune(tmp_path / "out", options)
    assert [line["step"] for line in read_lines(tmp_path / "out.work" / "training_log.jsonl")] == [1, 2]
    outcome = finetune(tmp_path / "out", options, resume=True)
    assert (outcome.resumed_at, outcome.last_loss) == (2, whole.last_loss)


def test_gradients_that_overflow_whatever_their_scale_end_a_run_and_change_nothing(
    options: FinetuneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 itself needs a GPU: here torch's scaler is at work, with a scale that is too large for float32."""
    options = changed(options, num_train_epochs=30, save_steps=0, max_grad_norm=0.0)
    made = _trainer(options, tmp_path / "work")
    before = {name: p.detach().clone() for name, p in made.model.learned_parameters().items()}
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.9999)
    with pytest.raises(DataError, match="gradients of 25 steps, up to 25, overflow in fp16"):
        made.train()
    for name, parameter in made.model.learned_parameters().items():
        assert torch.equal(parameter, before[name]), name


def test_a_full_disk_at_a_snapshot_is_one_line_and_the_one_before_stays(
    options: FinetuneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Any = getattr(trainer, "save_file")  # noqa: B009 - mypy: not exported

    def full(state: Any, path: Path, **more: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(28, "No space left on device")
        save(state, path, **more)

    monkeypatch.setattr(trainer, "save_file", full)
    with pytest.raises(DiskFullError, match=r"out\.work: the disk is full"):
        finetune(tmp_path / "out", options)
    work = tmp_path / "out.work"
    assert [path.name for path in work.glob("*checkpoint*")] == ["checkpoint-2"]
    assert not (work / ".saving").exists()
    assert newest_whole(work) == work / "checkpoint-2"
    monkeypatch.undo()
    assert finetune(tmp_path / "out", options, resume=True).resumed_at == 2


def test_the_newest_snapshots_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        written = tmp_path / ".saving" / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "model.safetensors").write_bytes(b"a")
        best = str(tmp_path / "checkpoint-1")
        snapshots.publish_checkpoint(tmp_path, written.name, keep=2, best=best)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3", "checkpoint-10"}
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"report_to": ("wandb",)}, "--report-to: the package wandb is missing here. pip install wandb"),
        ({"deepspeed": Path("ds.json")}, "--deepspeed: the package deepspeed is missing"),
        ({"attn_implementation": "flash_attention_2"}, "the package flash-attn is missing"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"fsdp": True}, "start it there, with torchrun"),
    ],
)
def test_what_is_missing_here_is_said(tmp_path: Path, training: dict[str, Any], message: str) -> None:
    options = FinetuneOptions(
        data=tmp_path, images=tmp_path, source=tmp_path, training=TrainingOptions(**training)
    )
    with pytest.raises(UsageError, match=message):
        training_arguments(options, tmp_path, [], has_validation=False)


def test_nothing_forces_an_attention_kernel() -> None:
    room = Path(training_log.__file__).parent
    assert not [
        path for path in room.glob("*.py") if "sdpa_kernel" in path.read_text() or "MATH" in path.read_text()
    ]


@pytest.mark.slow
def test_every_family_computes_where_its_weights_are() -> None:
    """No GPU is needed: see the program."""
    there = [name for name in CHECKPOINT_NAMES if (shared_fixtures() / "checkpoints" / name).is_dir()]
    assert there
    command = [sys.executable, "-m", "tests.train.forward_elsewhere", *there]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    devices = json.loads(done.stdout)
    assert devices.keys() == set(there)
    assert set(devices.values()) <= {"cuda:0", "privateuseone:0"}, devices


def test_what_a_run_writes_for_the_library_is_not_asked_of_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`auto` is what `accelerate launch` told the process when it began, else what computes here."""
    options = FinetuneOptions(data=tmp_path, images=tmp_path, source=tmp_path)
    before = arithmetic(options)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert arithmetic(options) == before
    monkeypatch.setattr(tuning, "_LAUNCHED", "bf16")
    assert arithmetic(options) == "bf16"


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps one state for a process."""
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()
