"""How an engine is built: what `build` asks for and an engine is known by. Needs no TensorRT."""

from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.errors import UsageError

from .binding import TARGETS

MIB = 1 << 20
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is built; every field is part of what makes two engines differ.

    Attributes:
        target: "tensorrt" or "tensorrt-rtx".
        min_batch, opt_batch, max_batch: the profile: pictures at once, at least, as tuned for, at most.
            Memory is planned for `max_batch`; a graph with a fixed batch allows that one only.
        workspace_bytes: memory that tactics may use, or None for a quarter of what is available.
        optimization_level: 0 (quick build) to 5 (long search), or None for TensorRT's own.
        timing_cache: file with the kernel timings of earlier builds, read and written; tensorrt only.
        version_compatible: the engine also loads in newer versions of the same major; tensorrt only.
        hardware_compatibility: "none", "ampere_plus" or "same_compute_capability"; tensorrt only.
        sms: compute capabilities to build for, such as (86, 89), or () for the library's own choice;
            tensorrt-rtx only.
        device_sm: compute capability of the GPU here where the caller knows it: what that GPU lacks is then
            refused before the build.
        device: number of the GPU to build on, as CUDA counts them.
    """

    target: str = "tensorrt"
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 1
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    sms: tuple[int, ...] = ()
    device_sm: int | None = None
    device: int = 0

    def __post_init__(self) -> None:
        """Refuse what no version has.

        Raises:
            UsageError: names the option, its value and what is allowed.
        """
        if self.target not in TARGETS:
            raise UsageError(f"--target {self.target!r} is not known. Known: {', '.join(TARGETS)}.")
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                f"batch {self.min_batch} / {self.opt_batch} / {self.max_batch}: expected 1 <= smallest "
                "<= tuned for <= largest."
            )
        if self.workspace_bytes is not None and self.workspace_bytes < MIB:
            raise UsageError(f"workspace is {self.workspace_bytes} bytes; it must be at least 1 MiB.")
        if self.optimization_level not in (None, *range(6)):
            raise UsageError(f"optimization level is {self.optimization_level}; it goes from 0 to 5.")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            known = ", ".join(HARDWARE_COMPATIBILITY)
            raise UsageError(f"hardware compatibility {self.hardware_compatibility!r}; known: {known}.")
        self._check_target()

    def _check_target(self) -> None:
        if self.target == "tensorrt" and self.sms:
            raise UsageError(
                "TensorRT builds for the GPU of this machine and no other: leave --sm out and build on the "
                "device, or take --target tensorrt-rtx for GeForce RTX."
            )
        if self.target == "tensorrt-rtx":
            for name in ("timing_cache", "version_compatible"):
                if getattr(self, name):
                    raise UsageError(f"TensorRT-RTX has no {name.replace('_', ' ')}: leave it out.")
            if self.hardware_compatibility != "none":
                raise UsageError("TensorRT-RTX ignores hardware compatibility: name the GPUs with --sm.")
