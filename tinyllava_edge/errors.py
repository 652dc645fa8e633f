"""Errors that a user can mend.

Every message says what was expected, what was found, where, and what to do. `assert` is for our own
invariants only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

MAX_MESSAGE = 3000  # characters: what a file says can be a megabyte, and what to do stands behind it


class TinyLlavaEdgeError(Exception):
    """Base of everything a user can mend: the command prints it on one line and exits with code 2."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= MAX_MESSAGE else f"{text[:2000]} [...] {text[-900:]}"


class CheckpointError(TinyLlavaEdgeError):
    """A checkpoint's files or keys are wrong."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is readable, but has a part that is not supported."""


class MissingFileError(CheckpointError):
    """A file that a checkpoint needs is nowhere, or may not be read; what is there can be looked at."""


class BundleError(TinyLlavaEdgeError):
    """A bundle's manifest or files are wrong."""


class HubError(TinyLlavaEdgeError):
    """The hub cannot be written to: no token, no right, no network, or it refuses."""


class ImageError(TinyLlavaEdgeError):
    """A picture cannot be read, or is over the limits."""


class CameraError(TinyLlavaEdgeError):
    """A camera, a video or a folder shows nothing, or nothing any more."""


class PromptError(TinyLlavaEdgeError):
    """Turns and pictures do not fit together."""


class ContextOverflowError(PromptError):
    """Prompt and answer do not fit in the model's context."""


class DataError(TinyLlavaEdgeError):
    """Training or evaluation data are wrong."""


class RecordError(DataError):
    """One record of the data is bad; the others are not.

    Attributes:
        kind: what is counted together, as "damaged picture".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ExportError(TinyLlavaEdgeError):
    """A part of the model cannot be converted."""


class BackendError(TinyLlavaEdgeError):
    """A runtime is not usable on this machine."""


class MissingExtraError(BackendError):
    """A runtime or stage needs a package that is not installed."""


class NoEngineError(BackendError):
    """No TensorRT engine of a variant was built on this machine, or it is damaged."""


class CudaError(BackendError):
    """The CUDA runtime reports a failure."""


class CudaMemoryError(CudaError):
    """The GPU has not enough memory left."""


class TensorRTError(BackendError):
    """TensorRT is installed, and something in it failed.

    Attributes:
        messages: what TensorRT logged about it, oldest first.
    """

    def __init__(self, message: str, messages: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.messages = messages


class TensorRTVersionError(TensorRTError):
    """The installed TensorRT is of a version that is not supported."""


class NoGpuError(TensorRTError):
    """No NVIDIA GPU, no driver, or a driver that is too old for this TensorRT."""


class EngineLoadError(TensorRTError):
    """An engine was built for another GPU or by another TensorRT, or its file is damaged."""


class EngineBuildError(TensorRTError):
    """TensorRT cannot build an engine from a graph."""


class UnsupportedGraphError(EngineBuildError):
    """The graph has an operator, type or shape that this TensorRT does not know."""


class UnsupportedPrecisionError(EngineBuildError):
    """The graph uses a precision that the GPU does not have."""


class EngineMemoryError(EngineBuildError):
    """The memory or the workspace did not suffice to build the engine."""


class EnginePlanError(EngineBuildError):
    """The engine was built, but is not as fast as it must be: attention is not fused, for one."""


class PackError(TinyLlavaEdgeError):
    """An engine pack is damaged, not signed by the owner's key, or for another board."""


class OutputExistsError(TinyLlavaEdgeError):
    """An output is there already, and `--force` was not given, or it is not this program's."""


class OutputBusyError(TinyLlavaEdgeError):
    """Another process is writing that output."""


class ResumeError(TinyLlavaEdgeError):
    """What a run left cannot be gone on with: it is complete, damaged, or of other inputs."""


class DiskFullError(TinyLlavaEdgeError, OSError):
    """An output does not fit on its disk; an OSError for whoever can do without what was not written."""


class OutputError(TinyLlavaEdgeError, OSError):
    """The system cannot write an output, for another reason than a full disk."""


class FileError(TinyLlavaEdgeError):
    """A file that a user names cannot be read: it is not there, is none, or is over the limits."""


class UsageError(TinyLlavaEdgeError):
    """Options that do not fit together."""


class GrammarError(UsageError):
    """A grammar or JSON schema cannot be read, or not be held to by this bundle."""


@contextmanager
def guarded(where: object, error: type[TinyLlavaEdgeError]) -> Iterator[None]:
    """Whatever goes wrong inside, a panic of Rust included, is one line of this type; Ctrl-C passes."""
    try:
        yield
    except TinyLlavaEdgeError:
        raise
    except BaseException as fault:  # pyo3's PanicException is no Exception
        if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":
            raise
        reason = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise error(f"{where} cannot be read ({reason}). Copy it again.") from None
