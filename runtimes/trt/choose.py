"""`tinyllava-edge build` on a device: build, compare with the reference tensors, step down where it differs.

    TensorRT fp16 (with the float32 islands its audit asked for) -> bf16 -> fp32
    -> ONNX Runtime on CUDA -> ONNX Runtime on the CPU

Every step that is left says why, and whether its answers show it. What was chosen, and every figure, is
remembered in the engine cache, and `--runtime auto` goes by it. A variant that was asked for by name is not
replaced by another. This process opens neither TensorRT nor CUDA while an engine is built (`process.py`).
"""

from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from tinyllava_edge.atomic_files import check_space, write_bytes
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note
from tinyllava_edge.errors import (
    BackendError,
    BundleError,
    EngineLoadError,
    NoEngineError,
    PackError,
)
from tinyllava_edge.gates import precision_of
from tinyllava_edge.precisions import PRECISIONS
from tinyllava_edge.reference_tensors import read_reference_tensors
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.registry import CPU_RUNTIME, CUDA_RUNTIME, RUNTIMES, vision_opener

from .budget import check_memory, least_engine_bytes
from .builder import OnProgress
from .cache import EngineCache, StoredEngine
from .compare import judge
from .device_parity import measure_parity
from .lookup import onnx_hashes
from .options import EngineOptions
from .process import build_engine_apart, compare_apart, read_board_apart
from .record import Choice, EngineKey, EngineRecord, Step, new_record

# Variants that an engine is tried from, in this order; int8_fp16 where it is asked for, never by itself.
ENGINE_VARIANTS = ("fp16", "bf16", "fp32")
CUDA_VARIANTS = tuple(name for name in ENGINE_VARIANTS if "cuda" in PRECISIONS[name].runs_on)


class DeviceBuild:
    """The ladder for one bundle on this machine.

    Args:
        bundle: with a reference/ folder.
        options: how engines are built; `target` says with what.
        on_progress: as for `build_engine`.
        force: build again what the cache has.

    Raises:
        BackendError: TensorRT or the GPU is not usable at all; nothing is tried instead.
        UsageError: there is no GPU of that number.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions,
        *,
        on_progress: OnProgress = lambda phase, done, total: None,
        force: bool = False,
    ) -> None:
        self.bundle = bundle
        self.cache = EngineCache()
        self.board, gpu = read_board_apart(options.target, options.device)
        self._shares_memory = gpu.integrated
        self.runtime = f"{options.target}+llamacpp"
        if options.target == "tensorrt-rtx":
            self.options = replace(options, device_sm=gpu.sm, sms=(gpu.sm,))
        else:
            self.options = replace(options, device_sm=gpu.sm, timing_cache=self.cache.timings)
        self._on_progress = on_progress
        self._is_asked_for = False
        self._force = force

    def choose(self, vision: str | None = None) -> Choice:
        """Go down until a step passes, and remember it.

        Args:
            vision: the one variant to build, or None for the ladder.

        Raises:
            BundleError: the bundle has no such variant, or no reference tensors.
            BackendError: no step passes; the message says why each was left. Of a variant that was asked for:
                what kept its engine from being built, `TensorRTError` and its children.
            DiskFullError: the cache has no room for an engine; nothing is tried instead.
        """
        self.bundle.variant("vision", vision)
        self._is_asked_for = vision is not None
        read_reference_tensors(self.bundle)  # before minutes go into engines that nothing could judge
        steps: list[Step] = []
        for runtime, name in self._attempts(vision):
            try:
                steps.append(self._try(runtime, name))
            except (BackendError, BundleError) as error:
                if vision is not None:
                    raise
                steps.append(Step(runtime=runtime, vision=name, outcome="not possible", reason=str(error)))
            if _told(steps[-1]).outcome == "chosen":
                return self._remember(steps)
        if step := next((step for step in steps if step.answers_equal), None):
            return self._remember([*steps, _told(self._take(step))])
        left = "; ".join(f"{step.runtime} {step.vision}: {step.reason}" for step in steps)
        raise BackendError(f"{self.bundle.root}: nothing computes it here as it must be. {left}.")

    def install(self, stored: StoredEngine, vision: str | None = None) -> Choice:
        """Take an engine of an identical board, whose signature was checked, and compare it here.

        Args:
            stored: from a pack.
            vision: the variant it must be of, or None for any of the bundle's.

        Raises:
            PackError: it is for another board, bundle, variant or batch; nothing was changed.
            BackendError: it does not load, or does not pass; nothing was changed then either.
        """
        record = stored.record
        if vision not in (None, record.variant):
            raise PackError(f"it is of vision {record.variant}, asked for is {vision}.")
        try:
            wanted = self.key(record.variant)
        except BundleError as error:
            raise PackError(str(error)) from None
        if fault := wanted.board.difference(record.key.board):
            raise PackError(f"it is for another board: this one has {fault}.")
        if record.key != wanted:
            fields = [name for name, value in wanted if getattr(record.key, name) != value]
            raise PackError(f"it was built from another bundle or with other options ({', '.join(fields)}).")
        check_space(self.cache.folder, len(stored.plan))
        with self.cache.lock(wanted), self.cache.work_file() as work:
            write_bytes(work, stored.plan, mode=0o600)
            checked = self._compare(record, work)
            if checked.status != "verified":
                raise BackendError(f"its engine is refused on this board: {checked.reason}.")
            self.cache.store(checked, work)
        reason = f"{checked.origin}; {checked.reason}"
        step = _step(self.runtime, record.variant, checked.status, reason, checked.parity)
        return self._remember([_told(step)])

    def key(self, name: str) -> EngineKey:
        """What the engine of a variant depends on; BundleError: the bundle has none of that name."""
        options = asdict(self.options)
        profile = (options.pop("min_batch"), options.pop("opt_batch"), options.pop("max_batch"))
        for given_otherwise in ("target", "timing_cache", "device_sm", "device"):
            del options[given_otherwise]
        return EngineKey(
            onnx=onnx_hashes(self.bundle, self.bundle.variant("vision", name)),
            board=self.board,
            profile=profile,
            flags={name: str(value) for name, value in sorted(options.items())},
        )

    def _attempts(self, vision: str | None) -> list[tuple[str, str]]:
        """Runtime and variant of every step to try, in order."""
        if vision is not None:
            return [(self.runtime, vision)]
        status = {v.name: v.status for v in self.bundle.manifest.variants if v.part == "vision"}
        engines = [(self.runtime, name) for name in ENGINE_VARIANTS if name in status]
        on_cuda = [(CUDA_RUNTIME, name) for name in CUDA_VARIANTS if status.get(name) == "verified"]
        return [*engines, *on_cuda, (CPU_RUNTIME, self.bundle.variant("vision").name)]

    def _try(self, runtime: str, name: str) -> Step:
        """Compare a variant on a runtime; its engine is built where there is none."""
        if runtime != self.runtime:
            backend = vision_opener(RUNTIMES[runtime][0])(
                self.bundle, BackendOptions(vision=name, device=self.options.device)
            )
            with closing(backend):
                return _step(runtime, name, *judge(measure_parity(self.bundle, backend.encode), name))
        precision_of(name)  # one without gates is not built
        key = self.key(name)
        with self.cache.lock(key, lambda: note("another process is building this engine: waiting")):
            record = self._checked(name, key)
        reason, equal = record.reason, bool(record.facts.get("answers_equal"))
        if "answers" in record.facts:
            reason += f"; {record.facts['answers']}"
        return _step(runtime, name, record.status, reason, record.parity, equal)

    def _take(self, step: Step) -> Step:
        """An engine that misses a gate and answers alike, where nothing better is there or was wanted."""
        record = self.cache.record(self.key(step.vision).digest)
        self.cache.update(record.model_copy(update={"status": "answers equal", "reason": step.reason}))
        why = "it was asked for by name" if self._is_asked_for else "nothing better is there"
        reason = f"{why}, and it is not verified: {step.reason}"
        return step.model_copy(update={"outcome": "chosen", "reason": reason})

    def _checked(self, name: str, key: EngineKey) -> EngineRecord:
        """The record of an engine that was compared just now; built where the cache has none that loads."""
        if not self._force:
            try:
                return self._check(key)
            except NoEngineError as error:
                note(f"vision {name}: to be built ({error})")
            except EngineLoadError as error:  # the library does not load what the cache has
                note(f"vision {name}: to be built again ({error})")
        variant = self.bundle.variant("vision", name)
        graph = self.bundle.path(variant.files[0])
        check_space(self.cache.folder, least_engine_bytes(self.bundle, variant))
        check_memory(
            self.bundle.variant_bytes(variant),
            shared=self._shares_memory,
            workspace_bytes=self.options.workspace_bytes,
            only_say=self._is_asked_for,
        )
        with self.cache.work_file() as work:
            facts = build_engine_apart(graph, self.options, work, self._on_progress)
            if facts["timings"]:
                note(facts["timings"])
            self.cache.store(new_record(key, name, work, facts), work)
        return self._check(key)

    def _check(self, key: EngineKey) -> EngineRecord:
        """Compare the cache's engine with the reference tensors, and write the result into its record."""
        with self.cache.find(key) as stored:
            record = stored.record
        record = self._compare(record, self.cache.plan_path(record))
        self.cache.update(record)
        return record

    def _compare(self, record: EngineRecord, plan: Path) -> EngineRecord:
        """The record of an engine with what it computes here; nothing is written but its kernels."""
        return compare_apart(self.bundle, record, plan, self.options.max_batch, self.options.device)

    def _remember(self, steps: list[Step]) -> Choice:
        """The last step is what `--runtime auto` takes from now on."""
        runtime, vision = steps[-1].runtime, steps[-1].vision
        choice = Choice(
            manifest_sha256=self.bundle.manifest_sha256,
            runtime=runtime,
            vision=vision,
            engine=self.key(vision).digest if runtime == self.runtime else None,
            steps=tuple(steps),
        )
        self.cache.choose(choice)
        return choice


def _step(
    runtime: str,
    vision: str,
    status: str,
    reason: str,
    parity: dict[str, float | int | None],
    answers_equal: bool = False,
) -> Step:
    return Step(
        runtime=runtime,
        vision=vision,
        outcome="chosen" if status == "verified" else "refused",
        reason=reason,
        parity=parity,
        answers_equal=answers_equal,
    )


def _told(step: Step) -> Step:
    note(f"{step.runtime} {step.vision}: {step.outcome}, {step.reason}")
    return step
