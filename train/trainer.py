"""transformers' Trainer and what is ours: rates by part, order of samples, bad records, whole checkpoints."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback

from tinyllava_edge.atomic_files import full_disk_named
from tinyllava_edge.errors import DataError, OutputError, RecordError, TinyLlavaEdgeError, UsageError

from .batches import FAULTS, Fault
from .model import TinyLlavaForTraining, plain_name
from .options import FinetuneOptions
from .run import SAVING
from .sampler import EpochSampler
from .samples import Samples
from .snapshots import publish_checkpoint

_WEIGHTS = "model.safetensors"
_SKIPPED_IN_A_ROW = 25  # steps: fp16's scale has gone from 65536 to 0.002 by then


class TinyLlavaTrainer(Trainer):
    """Trains a `TinyLlavaForTraining`; its checkpoints hold what is trained alone.

    Args:
        model: with what is trained chosen.
        samples: to train on.
        options: of the run.
        work: directory of its checkpoints.
        rest: the Trainer's own arguments.
    """

    def __init__(
        self,
        model: TinyLlavaForTraining,
        samples: Samples,
        options: FinetuneOptions,
        work: Path,
        **rest: Any,
    ) -> None:
        self._options, self._samples, self._work = options, samples, work
        self._saves_in: Path | None = None
        self._learned = list(model.learned_parameters())
        self.sampler: EpochSampler | None = None
        super().__init__(model=model, train_dataset=samples, data_collator=samples.collator, **rest)
        self.steps = Steps(self)
        self.add_callback(self.steps)

    # ---- The order of samples, and bad ones ----

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        training = self._options.training
        self.sampler = EpochSampler(
            len(self._samples),
            training.seed,
            lengths=self._samples.lengths() if training.group_by_modality_length else None,
            batch_size=training.per_device_train_batch_size,
            world_size=self.args.world_size,
        )
        return self.sampler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of a step, and how many labels they have.

        Raises:
            RecordError: one of their records is bad, and such are not to be left out; in every process.
            DataError: all records are left out.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        faults = [fault for batch in batches for fault in batch.pop(FAULTS)]
        if self.args.world_size > 1:
            found = torch.tensor([len(faults)], device=self.args.device)
            if int(self.accelerator.gather(found).sum()):
                faults = gather_object(faults)
        for fault in faults:
            meet(self._samples, fault)
        if not all(batches):
            raise DataError("no record is left to train on: all of them are bad.")
        return batches, count

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch of the validation set, whose records are all good.

        Raises:
            RecordError: one is not.
        """
        for fault in inputs.pop(FAULTS, ()):
            raise RecordError(fault.kind, f"validation set: record {fault.number}: {fault.reason}")
        return super().prediction_step(model, inputs, *args, **kwargs)

    # ---- Rates ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with the rate and the weight decay of each part; biases and norms do not decay."""
        if self.optimizer is None:
            whole: Any = self.model if model is None else model
            decays = set(self.get_decay_parameter_names(whole))
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in whole.named_parameters():
                if parameter.requires_grad:
                    part = plain_name(name).split(".")[0]
                    groups.setdefault((part, name in decays), []).append(parameter)
            made: Any = [
                {
                    "params": parameters,
                    "lr": self._options.rate_of(part),  # type: ignore[arg-type]
                    "weight_decay": self._options.decay_of(part) if decay else 0.0,  # type: ignore[arg-type]
                }
                for (part, decay), parameters in groups.items()
            ]
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, whole)
            self.optimizer = kind(made, **kwargs)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The course of the rates."""
        self.args.warmup_steps = self._options.training.warmup_of(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_learning_rate(self) -> float:
        schedule: Any = self.lr_scheduler
        return float(max(schedule.get_last_lr()))

    # ---- Checkpoints ----

    def learned_state(self, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """What is trained, by its name in the `TinyLlava`, on the CPU; whole in the first process alone.

        Args:
            state: of the whole model; collected from all processes if not given, which all must ask for.
        """
        if state is None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if state is None:
            state = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        named = {plain_name(name): tensor for name, tensor in state.items()}
        return {
            name: named[name].detach().to("cpu", copy=True).contiguous()
            for name in self._learned
            if name in named
        }

    def save_now(self) -> None:
        """Take a checkpoint of the steps that are done, where there is none of them yet."""
        step = self.state.global_step
        if self.steps.random_state is not None:  # an epoch's first batch has drawn from it already
            torch.set_rng_state(self.steps.random_state)
        if step and not (self._work / f"checkpoint-{step}").exists():
            self._save_checkpoint(self.model_wrapped, None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint that is whole when it has its name.

        Raises:
            DiskFullError: there is no room; the checkpoints before stay.
            OutputError: it could not be written.
        """
        name, saving = f"checkpoint-{self.state.global_step}", self._work / SAVING
        is_first = self.args.should_save
        if is_first:
            shutil.rmtree(saving, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with full_disk_named(self._work), _torch_named(saving):
                self._saves_in = saving
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if is_first:
                    self._mend_best()
                    publish_checkpoint(
                        self._work,
                        name,
                        keep=self._options.training.save_total_limit,
                        best=self.state.best_model_checkpoint,
                    )
        except BaseException:
            if is_first:
                shutil.rmtree(saving, ignore_errors=True)
            raise
        finally:
            self._saves_in = None
        self._mend_best()
        self.accelerator.wait_for_everyone()

    def _mend_best(self) -> None:
        """Where the best checkpoint will be, instead of where it was written."""
        if self.state.best_global_step and self.state.best_model_checkpoint:
            self.state.best_model_checkpoint = str(self._work / f"checkpoint-{self.state.best_global_step}")
            saved = self._work / SAVING / f"checkpoint-{self.state.global_step}" / "trainer_state.json"
            if saved.exists():
                self.state.save_to_json(str(saved))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saves_in or super()._get_output_dir(trial))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """What is trained, as safetensors; the Trainer's arguments, a pickle, are not needed."""
        if self.args.should_save:
            directory = Path(str(output_dir or self.args.output_dir))
            directory.mkdir(parents=True, exist_ok=True)
            save_file(self.learned_state(state_dict), directory / _WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_learned(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_learned(Path(str(self.state.best_model_checkpoint)))

    def _load_learned(self, checkpoint: Path) -> None:
        saved = load_file(checkpoint / _WEIGHTS)
        parameters = self.accelerator.unwrap_model(self.model).learned_parameters()
        if saved.keys() != parameters.keys():
            raise ValueError("weights of other names")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if saved[name].shape != parameter.shape:
                    raise ValueError(f"{name}: {list(saved[name].shape)}, expected {list(parameter.shape)}")
                parameter.copy_(saved[name])


class Steps(TrainerCallback):
    """Gives the sampler its epoch, keeps the random state, and looks at fp16's overflows.

    Attributes:
        has_begun: whether a step has; an error before is of what the run goes on from.
    """

    def __init__(self, trainer: TinyLlavaTrainer) -> None:
        self._trainer, self._skipped = trainer, 0
        self.has_begun = False
        self.random_state: torch.Tensor | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the sampler its epoch; one that a run goes on in is a fraction."""
        if self._trainer.sampler is not None:
            self._trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on errors are of the training."""
        self.has_begun = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the random state.

        Raises:
            DataError: no step is taken any more, since fp16's gradients overflow.
        """
        self.random_state = torch.get_rng_state()
        skipped = self._trainer.accelerator.optimizer_step_was_skipped
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= _SKIPPED_IN_A_ROW:
            raise DataError(
                f"the gradients of {self._skipped} steps, up to {state.global_step}, overflow in fp16, "
                "whatever they are scaled by: none of them was taken. Give --precision bf16 or fp32, or a "
                "lower learning rate. The snapshots before stay."
            )


def meet(samples: Samples, fault: Fault) -> None:
    """Leave a record out that turned out to be bad.

    Raises:
        RecordError: bad records are not to be left out.
    """
    record = samples.conversations[fault.number]
    if record is not None and fault.number not in samples.left_out:
        samples.left_out.meet(fault.number, record, RecordError(fault.kind, fault.reason))


@contextmanager
def _torch_named(path: Path) -> Iterator[None]:
    """Give torch's word for a write that failed, which is a RuntimeError, the path."""
    try:
        yield
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "file write failed" not in str(error):
            raise
        raise OutputError(f"{path}: could not be written ({error}). Look at its disk.") from None


@contextmanager
def resumed_from(checkpoint: Path | None, steps: Steps) -> Iterator[None]:
    """Name the checkpoint that a run could not go on from.

    Raises:
        UsageError: it is none of this run.
    """
    try:
        yield
    except TinyLlavaEdgeError:
        raise
    except Exception as error:  # torch and transformers raise many types on what they do not expect
        if checkpoint is None or steps.has_begun:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UsageError(
            f"{checkpoint}: not a state of this run, or of another version of this program ({reason}). Begin "
            "anew with --force."
        ) from None
