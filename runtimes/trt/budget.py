"""What a build takes of disk and memory, reckoned before minutes go into it."""

from pathlib import Path

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.console import note
from tinyllava_edge.device import read_machine
from tinyllava_edge.errors import EngineMemoryError
from tinyllava_edge.machine_files import read_meminfo

from .builder import default_workspace_bytes

# Peak of a process that builds, fitted to what TensorRT-RTX 1.7 took without a GPU for towers of 5 to 779 MiB
# of float16 weights (tests/runtimes/trt/test_budget.py has the table). Not measured on a board.
_BASE_BYTES = 340 << 20
_PER_WEIGHT_BYTE = 3.3
_ON_THE_GPU = 1.0  # and their copy for the kernels that are timed, where the GPU shares the main memory
_GIB = 1 << 30


def least_engine_bytes(bundle: Bundle, variant: Variant) -> int:
    """What a variant's engine takes of the disk at least, before there is one.

    TensorRT keeps the weights in the types that the graph has: engines of float16 graphs had 0.98 (ViT-S)
    to 1.5 (nano) times the graph's bytes (docs/tensorrt.md).
    """
    return bundle.variant_bytes(variant) * 9 // 10


def check_memory(
    weight_bytes: int,
    *,
    shared: bool,
    workspace_bytes: int | None = None,
    only_say: bool = False,
    root: Path = Path("/"),
) -> None:
    """Refuse a build that the free memory and swap do not hold, as far as can be reckoned.

    Args:
        weight_bytes: of the graph, external data included.
        shared: whether the GPU takes its memory from the main one.
        workspace_bytes: what kernels may use; None for `default_workspace_bytes`.
        only_say: whether that is a note, and the build goes on.
        root: of the system's files.

    Raises:
        EngineMemoryError: with the arithmetic.
    """
    available = _available_bytes(root)
    workspace = (workspace_bytes or default_workspace_bytes()) if shared else 0
    factor = _PER_WEIGHT_BYTE + (_ON_THE_GPU if shared else 0)
    needed = int(_BASE_BYTES + factor * weight_bytes) + workspace
    if available is None or needed <= available:
        return
    more = f" + {workspace / _GIB:.1f} workspace" if workspace else ""
    said = (
        f"building it takes about {needed / _GIB:.1f} GiB ({factor:.1f} x {weight_bytes / _GIB:.2f} of "
        f"weights + {_BASE_BYTES / _GIB:.1f}{more}), {available / _GIB:.1f} are free with swap. Close other "
        "programs, add swap while building, or name the variant with --vision to try all the same."
    )
    if not only_say:
        raise EngineMemoryError(said)
    note(f"this may not fit: {said}")


def _available_bytes(root: Path) -> int | None:
    """Free main memory and swap."""
    memory = read_machine(root).memory
    return None if memory is None else memory.available_bytes + (read_meminfo(root, "SwapFree") or 0)
