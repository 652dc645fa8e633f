"""`tinyllava-edge build` on a device: build, compare with the reference tensors, step down where it differs.

    TensorRT fp16 (with the float32 islands its audit asked for) -> bf16 -> fp32
    -> ONNX Runtime on CUDA -> ONNX Runtime on the CPU

Every step that is left says why. What was chosen, and every figure, is remembered in the engine cache, and
`--runtime auto` goes by it. A variant that was asked for by name is not replaced by another.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.errors import BackendError, BundleError, EngineLoadError, NoEngineError, PackError
from tinyllava_edge.gates import precision_of
from tinyllava_edge.precisions import PRECISIONS
from tinyllava_edge.reference_tensors import read_reference_tensors
from tinyllava_edge.runtimes.base import BackendOptions, VisionBackend
from tinyllava_edge.runtimes.registry import RUNTIMES, vision_opener

from .binding import TensorRT, open_tensorrt
from .builder import OnProgress
from .cache import EngineCache, StoredEngine
from .cudart import Cudart, open_cudart
from .device_parity import DeviceParity, measure_parity
from .lookup import onnx_hashes, read_board
from .options import EngineOptions
from .process import build_engine_apart
from .record import Board, Choice, EngineKey, EngineRecord, Step, new_record
from .vision import TensorRTVision

# Variants that an engine is tried from, in this order; int8_fp16 where it is asked for, never by itself.
ENGINE_VARIANTS = ("fp16", "bf16", "fp32")
CUDA_VARIANTS = tuple(name for name in ENGINE_VARIANTS if "cuda" in PRECISIONS[name].runs_on)
CPU_RUNTIME, CUDA_RUNTIME = "onnxruntime+llamacpp", "onnxruntime-cuda+llamacpp"
_WARM_UPS, _RUNS = 3, 10
Build = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step came to.

    Attributes:
        step: for the record.
        engine: digest of its key where it has an engine.
        error: why it was not possible, where it was not.
    """

    step: Step
    engine: str | None = None
    error: BackendError | BundleError | None = None


class DeviceBuild:
    """The ladder for one bundle on this machine.

    Args:
        bundle: with a reference/ folder.
        options: how engines are built; `target` says with what.
        say: called with a line for the user at every step.
        on_progress: as for `build_engine`.
        force: build again what the cache has.
        build: what builds an engine into a file; by default a process of its own.

    Raises:
        BackendError: TensorRT or the GPU is not usable at all; nothing is tried instead.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions,
        *,
        say: Callable[[str], None] = lambda line: None,
        on_progress: OnProgress = lambda phase, done, total: None,
        force: bool = False,
        build: Build | None = None,
    ) -> None:
        self.bundle = bundle
        self.cache = EngineCache()
        self.binding: TensorRT = open_tensorrt(options.target)
        self.cuda: Cudart = open_cudart()
        self.binding.create_runtime()  # a TensorRT that cannot start is not a step
        gpu = self.cuda.read_gpu()
        self.board: Board = read_board(self.binding, gpu)
        if options.target == "tensorrt-rtx":
            self.options = replace(options, device_sm=gpu.sm, sms=(gpu.sm,))
        else:
            self.options = replace(options, device_sm=gpu.sm, timing_cache=self.cache.timings)
        self._say = say
        self._on_progress = on_progress
        self._force = force
        self._build = build or build_engine_apart

    def choose(self, vision: str | None = None) -> Choice:
        """Go down until a step passes, and remember it.

        Args:
            vision: the one variant to build, or None for the ladder.

        Raises:
            BundleError: the bundle has no such variant, or no reference tensors.
            BackendError: no step passes; the message says why each was left. Of a variant that was asked for:
                what kept its engine from being built, `TensorRTError` and its children.
        """
        self.bundle.variant("vision", vision)
        read_reference_tensors(self.bundle)  # before minutes go into engines that nothing could judge
        steps: list[Step] = []
        for attempt in self._attempts(vision):
            outcome = attempt()
            if vision is not None and outcome.error is not None:
                raise outcome.error
            steps.append(outcome.step)
            self._say(
                f"{outcome.step.runtime} {outcome.step.vision}: {outcome.step.outcome}, {outcome.step.reason}"
            )
            if outcome.step.outcome == "chosen":
                return self._remember(steps, outcome.engine)
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
            wanted = self.key(self.bundle.variant("vision", record.variant))
        except BundleError as error:
            raise PackError(str(error)) from None
        if fault := wanted.board.difference(record.key.board):
            raise PackError(f"it is for another board: this one has {fault}.")
        if record.key != wanted:
            fields = [
                name
                for name in ("onnx", "profile", "flags")
                if getattr(record.key, name) != getattr(wanted, name)
            ]
            raise PackError(f"it was built from another bundle or with other options ({', '.join(fields)}).")
        with self.cache.lock(wanted):
            checked = self._compare(stored)
            if checked.status != "verified":
                raise BackendError(f"its engine is refused on this board: {checked.reason}.")
            self.cache.store_copy(checked, stored.plan)
        step = Step(
            runtime=f"{self.options.target}+llamacpp",
            vision=record.variant,
            outcome="chosen",
            reason=f"{checked.origin}; {checked.reason}",
            parity=dict(checked.parity),
        )
        self._say(f"{step.runtime} {step.vision}: chosen, {step.reason}")
        return self._remember([step], wanted.digest)

    def _remember(self, steps: list[Step], engine: str | None) -> Choice:
        """The last step is what `--runtime auto` takes from now on."""
        choice = Choice(
            manifest_sha256=self.bundle.manifest_sha256,
            runtime=steps[-1].runtime,
            vision=steps[-1].vision,
            engine=engine,
            steps=tuple(steps),
        )
        self.cache.choose(choice)
        return choice

    def key(self, variant: Variant) -> EngineKey:
        """What the engine of a variant depends on."""
        options = asdict(self.options)
        profile = (options.pop("min_batch"), options.pop("opt_batch"), options.pop("max_batch"))
        for name in ("target", "timing_cache", "device_sm"):
            del options[name]
        return EngineKey(
            onnx=onnx_hashes(self.bundle, variant),
            board=self.board,
            profile=profile,
            flags={name: str(value) for name, value in sorted(options.items())},
        )

    def _attempts(self, vision: str | None) -> Iterator[Callable[[], Outcome]]:
        """What to try, in order."""
        names = [variant.name for variant in self.bundle.manifest.variants if variant.part == "vision"]
        if vision is not None:
            yield partial(self._try_engine, vision)
            return
        for name in ENGINE_VARIANTS:
            if name in names:
                yield partial(self._try_engine, name)
        verified = [
            v.name for v in self.bundle.manifest.variants if v.part == "vision" and v.status == "verified"
        ]
        for name in CUDA_VARIANTS:
            if name in verified:
                yield partial(self._try_onnxruntime, CUDA_RUNTIME, name)
        yield partial(self._try_onnxruntime, CPU_RUNTIME, self.bundle.variant("vision").name)

    def _try_engine(self, name: str) -> Outcome:
        """Build the engine of a variant, or find it, and compare it."""
        runtime = f"{self.options.target}+llamacpp"
        variant = self.bundle.variant("vision", name)
        key = self.key(variant)
        try:
            precision_of(name)
            with self.cache.lock(key, lambda: self._say("another process is building this engine: waiting")):
                record = self._checked(variant, key)
        except (BackendError, BundleError) as error:
            step = Step(runtime=runtime, vision=name, outcome="not possible", reason=str(error))
            return Outcome(step=step, error=error)
        step = Step(
            runtime=runtime,
            vision=name,
            outcome="chosen" if record.status == "verified" else "refused",
            reason=record.reason,
            parity=dict(record.parity),
        )
        return Outcome(step=step, engine=key.digest)

    def _checked(self, variant: Variant, key: EngineKey) -> EngineRecord:
        """The record of an engine that was compared just now; built where the cache has none that loads."""
        if not self._force:
            try:
                return self.check(key)
            except NoEngineError as error:
                self._say(f"vision {variant.name}: to be built ({error})")
            except EngineLoadError as error:  # the library does not load what the cache has
                self._say(f"vision {variant.name}: to be built again ({error})")
        self._store(variant, key)
        return self.check(key)

    def _store(self, variant: Variant, key: EngineKey) -> None:
        with self.cache.work_file() as work:
            facts = self._build(self.bundle.path(variant.files[0]), self.options, work, self._on_progress)
            record = new_record(key, variant.name, work, build_seconds=facts.get("seconds"), facts=facts)
            self.cache.store(record, work)

    def check(self, key: EngineKey) -> EngineRecord:
        """Compare the cache's engine with the reference tensors, and write the result into its record.

        Raises:
            NoEngineError: there is none, or it is damaged.
            BackendError: it does not load, or fails.
            BundleError: its variant has no gates, or the bundle no reference.
        """
        with self.cache.find(key) as stored:
            record = self._compare(stored)
        self.cache.update(record)
        return record

    def _compare(self, stored: StoredEngine) -> EngineRecord:
        """The record of an engine with what it computes here; nothing is written."""
        backend = TensorRTVision(self.binding, self.cuda, stored, self.bundle.manifest.vision)
        with closing(backend):
            parity = measure_parity(self.bundle, backend.encode, self.options.max_batch)
            fault = parity.fault(stored.record.variant)
            facts = {
                **stored.record.facts,
                "memory": asdict(backend.memory),
                "graph": backend.graph,
                "device_ms": None if fault else _measure_ms(self.bundle, backend),
            }
        return stored.record.model_copy(
            update={
                "status": "refused" if fault else "verified",
                "reason": fault or f"equal within the gates ({parity})",
                "parity": parity.to_json(),
                "facts": facts,
            }
        )

    def _try_onnxruntime(self, runtime: str, name: str) -> Outcome:
        """Compare a variant on ONNX Runtime."""
        step = partial(Step, runtime=runtime, vision=name)
        try:
            parity = self._onnxruntime_parity(runtime, name)
            fault = parity.fault(name)
        except (BackendError, BundleError) as error:
            return Outcome(step=step(outcome="not possible", reason=str(error)), error=error)
        reason = fault or f"equal within the gates ({parity})"
        return Outcome(
            step=step(outcome="refused" if fault else "chosen", reason=reason, parity=parity.to_json())
        )

    def _onnxruntime_parity(self, runtime: str, name: str) -> DeviceParity:
        open_vision = vision_opener(RUNTIMES[runtime][0])
        backend: VisionBackend = open_vision(self.bundle, BackendOptions(vision=name))
        with closing(backend):
            return measure_parity(self.bundle, backend.encode)


def _measure_ms(bundle: Bundle, backend: TensorRTVision) -> float:
    """Median time of a picture on the device, copies included."""
    side = bundle.manifest.vision.image_size
    pixels = np.zeros((1, 3, side, side), dtype=np.float32)
    times = []
    for _ in range(_WARM_UPS + _RUNS):
        backend.encode(pixels)
        assert backend.device_ms is not None, "it just ran"
        times.append(backend.device_ms)
    return float(np.median(times[_WARM_UPS:]))
