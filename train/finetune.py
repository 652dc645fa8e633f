"""Train a checkpoint on the user's own conversations, and write it as a checkpoint that `export` reads."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.atomic_files import check_space, fsync, full_disk_named, output_directory, write_json
from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.checkpoint.config import BUDGETS_KEY, SIDECAR_FILE
from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.layouts import ADAPTER_CONFIG
from tinyllava_edge.checkpoint.names import NANO, is_shipped
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.model.weight_grids import GRIDS, round_weights
from tinyllava_edge.record_check import say_kinds
from tinyllava_edge.work_places import empty

from .assemble import assemble
from .check import Looker, known_bad
from .curve import write_curve
from .data import read_lines
from .fit import Fitted, fit
from .left_out import left_out_before
from .lora import adapter_sha256, add_lora, merge_lora, save_adapter
from .mix import SHARE, draw, shares
from .model import TinyLlavaForTraining
from .options import FinetuneOptions
from .quantized import round_to_4_bits
from .ranks import first_goes_first, is_first, world_size
from .records import Data, data_sha256, is_trained_on, read_data, refuse_bad
from .run import check_run, held_run, open_run, read_sidecar, remove_work, work_directory
from .run_records import Numbered, open_records
from .samples import Samples, open_samples, open_source
from .save import stored_dtype, write_frame, write_weights
from .training_log import STAGE
from .tuning import DTYPES, arithmetic, choose_trained, keep_frozen_in, uses_fsdp
from .written import ADAPTER_FOLDER, CURVE_FILE, LOG_FILE, REPORTS, checkpoint_mark

# Of the training's options, those that the outcome does not depend on.
_FREE = ("precision", "save_steps", "save_total_limit", "dataloader_num_workers", "report_to", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did.

    In a process that is not the first, which has no log, the losses are NaN.
    """

    steps: int
    resumed_at: int  # step it went on from; `steps` where the output was there already
    first_loss: float
    last_loss: float
    seconds: float
    left_out: dict[str, int]  # records by kind of what is wrong with them


def finetune(
    out: Path, options: FinetuneOptions, *, resume: bool = False, force: bool = False, skip_bad: bool = False
) -> Outcome:
    """Train, and write the checkpoint; nothing is at `out` before all of it is.

    While it runs, log and snapshots are in `OUT.work`. On one machine with one number of threads, a resumed
    run gives the losses and weights of an uninterrupted one, bit for bit. Of several processes the first
    writes.

    Args:
        out: directory of the new checkpoint.
        options: what to train, on what, and how.
        resume: go on from the newest whole snapshot of an interrupted run, where there is one.
        force: replace an existing output, and without `resume` an unfinished run.
        skip_bad: leave bad records out, known ones before the first step, others when they are met.

    Raises:
        OutputExistsError: an output or an unfinished run is in the way.
        CheckpointError: the source is damaged or not supported.
        DataError: the data are malformed, pictures are missing, or the training diverged.
        RecordError: a bad record was met; a snapshot was taken before it.
        UsageError: the unfinished run is of other options or data, another process goes on with it, or `out`
            touches what is read.
        DiskFullError: there is no room for the checkpoint or a snapshot.
    """
    if is_first():
        check_run(out, resume=resume, force=force, sources=options.paths_read)
    data = read_data(options)
    draw(data.files, data.counts, options.training.seed)  # refuses a share of nothing
    if not skip_bad:
        refuse_bad(data.bad, data, left_out_before(out) if resume else set())
    run = _Run(out, options, data, resume=resume, force=force, skip_bad=skip_bad)
    with ExitStack() as stack:
        with first_goes_first():
            if is_first():
                stack.enter_context(held_run(out))
                stack.enter_context(_source_in_place(options))
            finished = run.open()
        return run.outcome(run.steps) if finished else run.train()


@contextmanager
def _source_in_place(options: FinetuneOptions) -> Iterator[None]:
    """Assemble the checkpoint to start from, where it is given in parts; a resumed run makes the same one."""
    if options.parts is None:
        yield
        return
    assemble(
        options.source,
        options.parts,
        seed=options.training.seed,
    )
    try:
        yield
    finally:
        shutil.rmtree(options.source)


class _Run:
    """A run as one process has it."""

    def __init__(
        self, out: Path, options: FinetuneOptions, data: Data, *, resume: bool, force: bool, skip_bad: bool
    ) -> None:
        self._out, self._options, self._data = out, options, data
        self._resume, self._force, self._skip_bad = resume, force, skip_bad
        self.steps = 0

    def open(self) -> bool:
        """Open source, directory and records; whether the output is there already, as this very run's."""
        self._source = open_source(self._options, self._options.source)
        self._facts = _facts(self._options, self._source)
        if self._resume and is_trained_on(read_sidecar(self._out, self._facts), self._data):
            if is_first():
                remove_work(self._out)
            self.steps = read_lines(self._out / LOG_FILE)[-1]["step"]
            return True
        self._samples = open_samples(self._source, self._options)
        self._validation = _validation_samples(self._source, self._options)
        bad = known_bad(self._data, self._samples, self._options)
        if not self._skip_bad:
            refuse_bad(bad, self._data, left_out_before(self._out) if self._resume else set())
        self._work = work_directory(self._out)
        if is_first():
            open_run(self._out, self._facts, resume=self._resume, force=self._force)
        self._records, self._left_out = open_records(
            self._work,
            self._data,
            bad if self._skip_bad else {},
            Looker(self._samples),
            skip=self._skip_bad,
            writes=is_first(),
        )
        self._samples.conversations, self._samples.left_out = self._records, self._left_out
        files, counts = self._data.files, self._records.counts
        self._samples.drawn = draw(files, counts, self._options.training.seed).tolist()
        return False

    def train(self) -> Outcome:
        """Train from the newest snapshot to the end, and write the output."""
        if is_first():
            if self._left_out.counts:
                note(f"left out from the start: {say_kinds(self._left_out.counts)}")
            files = self._data.files
            if len(files) > 1 or files[0].weight != 1:
                for share in shares(files, self._records.counts, self._samples.numbers):
                    note(SHARE.format(**share))
            note(f"log and snapshots while it runs: {self._work}")
        model = load_model(self._source)
        dtype = _written_dtype(self._source, self._options)
        self._needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
        check_space(self._out, self._needed)
        with full_disk_named(self._work) if is_first() else nullcontext():
            fitted = self._fit(model)
        del model
        if not is_first():
            return Outcome(
                steps=fitted.steps,
                resumed_at=fitted.resumed_at,
                first_loss=math.nan,
                last_loss=math.nan,
                seconds=0.0,
                left_out=self._left_out.counts,
            )
        self._write(fitted.learned)
        empty(self._work)  # `held_run` removes it
        if self._left_out.counts:
            note(f"left out: {say_kinds(self._left_out.counts)} of {len(self._data)} records")
        return self.outcome(fitted.resumed_at)

    def _fit(self, model: TinyLlava) -> Fitted:
        options, training = self._options, self._options.training
        torch.manual_seed(training.seed)
        choose_trained(model, options)
        teacher = load_model(self._source).requires_grad_(False) if training.distill else None
        precision = arithmetic(options)
        for each in filter(None, (model, teacher)):
            if precision != "no" and not uses_fsdp(options):  # which shards parts of one dtype
                keep_frozen_in(each, getattr(torch, DTYPES[precision]))
        trained = TinyLlavaForTraining(model, teacher)
        if training.attn_implementation != "auto":
            for each in (trained, *trained.teachers):
                each.set_attention(training.attn_implementation)
        if training.gradient_checkpointing:
            trained.checkpoint_activations()
        return fit(trained, self._samples, self._validation, options, self._work)

    def _write(self, learned: dict[str, torch.Tensor]) -> None:
        """Put what was trained into the source's own weights, and write the checkpoint."""
        model, options = load_model(self._source), self._options
        if options.has_qlora:
            round_to_4_bits(model.language_model)
        adapted = add_lora(model, options.lora_parts, options.lora) if options.has_lora else None
        with torch.no_grad():
            for name, tensor in learned.items():
                model.get_parameter(name).copy_(tensor)
        for grid in options.training.quantize_aware:
            round_weights(GRIDS[grid][1](model).values(), grid)
        merge_error = None
        with output_directory(
            self._out, force=self._force, mark=checkpoint_mark, needed=self._needed
        ) as directory:
            if adapted is not None:
                if options.save_adapter:
                    save_adapter(adapted, directory / ADAPTER_FOLDER)
                if options.keep_adapter:
                    save_adapter(adapted, directory, base=_source_name(options))
            if adapted is not None and not options.keep_adapter:
                merge_error = merge_lora(
                    model, adapted, self._samples.collator(self._samples.__getitems__([0]))
                )
            facts = self._facts | {
                "data": ", ".join(file.path.name for file in options.files),
                "data_sha256": data_sha256(self._records.data.hashes, self._left_out.hashes),
                "left_out": self._left_out.records,
                "merge_error": merge_error,
            }
            dtype = _written_dtype(self._source, options)
            _write(model, directory, self._source, facts, self._work, dtype)

    def outcome(self, resumed_at: int) -> Outcome:
        """What the output says of the run."""
        lines = [line for line in read_lines(self._out / LOG_FILE) if line["stage"] == STAGE]
        left_out = read_json_object(self._out / SIDECAR_FILE)["left_out"]
        return Outcome(
            steps=lines[-1]["step"],
            resumed_at=resumed_at,
            first_loss=lines[0]["loss"],
            last_loss=lines[-1]["loss"],
            seconds=lines[-1]["seconds"],
            left_out=dict(Counter(record["kind"] for record in left_out)),
        )


def _validation_samples(source: Checkpoint, options: FinetuneOptions) -> Samples | None:
    """The validation set, which has no bad records.

    Raises:
        DataError: it has; the message shows the first.
    """
    if options.eval_data is None:
        return None
    data = read_data(options, validation=True)
    refuse_bad(data.bad, data, set())
    samples = open_samples(source, options)
    samples.conversations = Numbered(data, range(len(data)), samples.left_out)
    return samples


def _facts(options: FinetuneOptions, source: Checkpoint) -> dict[str, Any]:
    """What the outcome depends on, for the sidecar and to know a run again."""
    training = {key: value for key, value in asdict(options.training).items() if key not in _FREE}
    facts = {
        "recipe": options.recipe,
        "tune": {part: asdict(tuning) for part, tuning in options.tune.items()},
        "training_template": options.template,
        "mix": [file.weight for file in options.files],
        **training,
        "learning_rate": options.rate,
        "lora": asdict(options.lora) if options.has_lora else None,
        "save_adapter": options.save_adapter,
        "keep_adapter": options.keep_adapter,
        "eval_data_sha256": _stopping_data(options),
        "adapter_sha256": None if options.adapter is None else adapter_sha256(options.adapter),
        "mixed_precision": arithmetic(options),
        "processes": world_size(),
        "source": _source_name(options),
        "source_sha256": source.sha256,
    }
    if options.budgets:
        facts[BUDGETS_KEY] = options.budgets
    return dict(json.loads(json.dumps(facts)))


def _stopping_data(options: FinetuneOptions) -> str | None:
    """Hash of the validation set where it decides when the run ends, and with which weights."""
    stops = options.training.early_stopping_patience and options.eval_data is not None
    return sha256_of_file(options.eval_data) if stops else None  # type: ignore[arg-type]


def _source_name(options: FinetuneOptions) -> str:
    if options.parts is not None:
        return options.parts.name
    return NANO if is_shipped(options.source) else options.source.resolve().name


def _written_dtype(source: Checkpoint, options: FinetuneOptions) -> torch.dtype:
    """The source's; float32 on a grid, of whose values float16 holds 11 bits of 14."""
    return torch.float32 if options.training.quantize_aware else stored_dtype(source)


def _write(
    model: TinyLlava,
    directory: Path,
    source: Checkpoint,
    facts: dict[str, Any],
    work: Path,
    dtype: torch.dtype,
) -> None:
    """Fill the directory of the finished checkpoint."""
    write_frame(source, directory, dtype, max_length=facts["model_max_length"])
    if not (directory / ADAPTER_CONFIG).exists():  # the update alone
        write_weights(model, directory, dtype)
    write_json(directory / SIDECAR_FILE, {"template": model.config.template, **facts})
    shutil.copy(work / LOG_FILE, directory / LOG_FILE)
    write_curve(work / LOG_FILE, directory / CURVE_FILE)
    if (work / REPORTS).is_dir():
        shutil.copytree(work / REPORTS, directory / REPORTS)
    for path in directory.rglob("*"):
        fsync(path)
