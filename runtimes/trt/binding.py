"""The one module that imports TensorRT, as `tensorrt` or `tensorrt_rtx`, and makes errors of its silences.

TensorRT answers a failure with None, False or a TypeError, and tells the cause to its logger alone. Here the
logger collects what is said, and every failure becomes a `TensorRTError` with the cause and the next step.

Code that uses the library says `binding.trt` for its module, and annotates what it takes from it, as in
`config: "trt.IBuilderConfig"`: tests/runtimes/trt/names.py reads these, and holds every name against the
recorded API of each supported version.
"""

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from tinyllava_edge.errors import (
    EngineLoadError,
    MissingExtraError,
    NoGpuError,
    TensorRTError,
    TensorRTVersionError,
)
from tinyllava_edge.extras import install_line

if TYPE_CHECKING:
    import tensorrt as trt

# target -> (module, oldest version, newest major version)
TARGETS = {
    "tensorrt": ("tensorrt", (10, 3), 11),
    "tensorrt-rtx": ("tensorrt_rtx", (1, 7), 1),
}
# CUDA runtime error code -> what it means. Source: CUDA Runtime API, cudaError_t.
_GPU_ERRORS = {
    35: "there is no NVIDIA driver, or it is older than this CUDA needs",
    38: "there is no CUDA device",
    46: "every CUDA device is in use or not available",
    100: "there is no CUDA device",
    803: "driver and CUDA library are of different versions",
    804: "this GPU does not run a CUDA newer than its driver",
    999: "the driver does not answer",
}
KEPT_MESSAGES = 500  # outside of a verbose capture


@dataclass(frozen=True)
class LogMessage:
    """One message of TensorRT's logger."""

    severity: str  # "INTERNAL_ERROR", "ERROR", "WARNING", "INFO" or "VERBOSE"
    text: str


class MessageLog:
    """What TensorRT said while it was open."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.messages: deque[LogMessage] = deque(maxlen=None if verbose else KEPT_MESSAGES)

    def add(self, message: LogMessage) -> None:
        """Keep a message; without `verbose` only the last ones, and none of the chatter."""
        if self.verbose or message.severity != "VERBOSE":
            self.messages.append(message)

    def errors(self) -> tuple[str, ...]:
        """Text of every error, each once."""
        said = [m.text for m in self.messages if m.severity in ("INTERNAL_ERROR", "ERROR")]
        return tuple(dict.fromkeys(" ".join(text.split()) for text in said))


class TensorRT:
    """The opened library; one a target in a process, made by `open_tensorrt`.

    Attributes:
        target: "tensorrt" or "tensorrt-rtx".
        trt: the library's module.
        version_text: as the library spells it: "10.3.0".
        logger: the one logger of the process: TensorRT keeps the first it gets, for everything.
    """

    def __init__(self, target: str, module: Any) -> None:
        self.target = target
        self.trt = module
        self.version_text = str(module.__version__)
        self._logs: list[MessageLog] = [MessageLog()]
        self.logger = _logger(module, self._logs)

    @contextmanager
    def capture(self, *, verbose: bool = False) -> Iterator[MessageLog]:
        """Collect what is said from here on; `verbose` keeps the whole engine plan that a build prints."""
        log = MessageLog(verbose=verbose)
        self._logs.append(log)
        try:
            yield log
        finally:
            self._logs.remove(log)

    def create_builder(self) -> "trt.Builder":
        """A builder.

        Raises:
            NoGpuError: TensorRT finds no usable GPU; TensorRT-RTX needs none to build.
        """
        return self._create(self.trt.Builder)

    def create_runtime(self) -> "trt.Runtime":
        """A runtime; raises as `create_builder` does."""
        return self._create(self.trt.Runtime)

    def deserialize(self, runtime: "trt.Runtime", plan: bytes | memoryview) -> "trt.ICudaEngine":
        """An engine from its plan, which must come from this machine: a plan is code.

        Raises:
            EngineLoadError: it is of another GPU or version, or damaged.
            NoGpuError: there is no usable GPU.
        """
        with self.capture() as log:
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is not None:
                return engine
            if reason := gpu_fault(log.errors()):
                self._no_gpu(reason, log)
            raise self.failure(
                EngineLoadError,
                f"{self.name} does not load this engine of {len(plan)} bytes",
                "It was built on another GPU or by another version, or is damaged: build it again here with "
                f"tinyllava-edge build --target {self.target}",
                log,
            )

    def inspect(self, engine: "trt.ICudaEngine") -> str:
        """What the engine's inspector says of its layers: JSON."""
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    @property
    def name(self) -> str:
        """For people: "TensorRT 10.3.0"."""
        return f"{'TensorRT-RTX' if self.target == 'tensorrt-rtx' else 'TensorRT'} {self.version_text}"

    def failure(
        self, kind: type[TensorRTError], what: str, next_step: str, log: MessageLog | None = None
    ) -> TensorRTError:
        """An error that says what failed, what TensorRT said first about it, and what to do."""
        errors = (log or self._logs[0]).errors()
        said = f": {errors[0].rstrip('.')}" if errors else ""
        return kind(f"{what}{said}. {next_step}.", errors)

    def _create(self, kind: Any) -> Any:
        with self.capture() as log:
            try:
                return kind(self.logger)
            except TypeError:  # pybind11: "factory function returned nullptr"
                self._no_gpu(gpu_fault(log.errors()), log)

    def _no_gpu(self, reason: str, log: MessageLog) -> NoReturn:
        reason = reason or "TensorRT cannot start CUDA"
        raise self.failure(
            NoGpuError,
            f"{self.name} is installed, but finds no usable GPU: {reason}",
            "Install or update the NVIDIA driver (a container needs --gpus all, or --runtime nvidia on a "
            "Jetson), or take --runtime onnxruntime+llamacpp",
            log,
        )


@cache
def open_tensorrt(target: str) -> TensorRT:
    """Import the library of a target.

    Args:
        target: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingExtraError: it is not installed.
        TensorRTError: it is installed and does not load.
        TensorRTVersionError: its version is not one of those supported.
    """
    module_name, oldest, newest_major = TARGETS[target]
    try:
        module = import_module(module_name)
    except Exception as error:  # a library that is not found raises many types
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            raise MissingExtraError(f"{module_name} is not installed: {install_line(target)}.") from None
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise TensorRTError(
            f"{module_name} is installed, but does not load: {said}. "
            f"Install it again: {install_line(target, again=True)}."
        ) from error
    text = str(getattr(module, "__version__", ""))
    version = tuple(int(number) for number in re.findall(r"\d+", text))
    if version < oldest or version[0] > newest_major:
        wanted = f"{'.'.join(map(str, oldest))} to {newest_major}.x"
        raise TensorRTVersionError(
            f"{module_name} {text or 'without a version'} is installed ({getattr(module, '__file__', '?')}), "
            f"supported are {wanted}. Install one of those: {install_line(target)}."
        )
    return TensorRT(target, module)


def gpu_fault(errors: tuple[str, ...]) -> str:
    """What is wrong with GPU or driver, where the first message is a CUDA error that says so; else ""."""
    code = re.search(r"(?:cudaError|CUDA initialization failure with error:) (\d+)", "".join(errors[:1]))
    return _GPU_ERRORS.get(int(code[1]), "") if code else ""


def _logger(trt: Any, logs: list[MessageLog]) -> "trt.ILogger":
    """TensorRT's logger, which hands every message to the newest log."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            name = getattr(severity, "name", str(severity))
            logs[-1].add(LogMessage(name, message))

    return Logger()
