"""The board's part of `doctor`: JetPack, power mode, clocks, rails, memory, and what mends them."""

from collections.abc import Iterator
from pathlib import Path

from tinyllava_edge.board_state import BoardState, Clock
from tinyllava_edge.device import Machine
from tinyllava_edge.install import apt_install
from tinyllava_edge.jetson import TEGRAS, Jetson

# Below this JetPack 6 fails on large allocations: docs/sources/tensorrt.md#contiguous-memory.
JETPACK6_CMA_BYTES = 900 << 20
# What an engine computes in beside its weights; so400m's takes 68 MB (docs/tensorrt.md).
_SCRATCH_BYTES = 72 << 20
_SMALL_MEMORY_BYTES = 9 << 30  # boards of 8 GB: a build may need more than is free
_OLDEST_L4T = 36


def board_lines(machine: Machine, board: BoardState) -> Iterator[str]:
    """The report for people."""
    jetson = machine.jetson
    if board.swap_bytes is not None:
        yield f"swap         {board.swap_bytes / (1 << 30):.1f} GiB"
    if jetson is None:
        return
    l4t, jetpack, mode = (x or "unknown" for x in (jetson.l4t, jetson.jetpack, jetson.power_mode))
    yield f"Jetson       {jetson.model}, L4T {l4t}, JetPack {jetpack}, power mode {mode}"
    module, tensorrt = jetson.module or "unknown", jetson.tensorrt or "unknown"
    yield f"             module {module}, chip {jetson.chip or 'unknown'}, expected TensorRT {tensorrt}"
    held = {True: "on", False: "off", None: "unknown"}[board.clocks_held]
    yield f"clocks       GPU {_mhz(board.gpu_clock)}, CPU {_mhz(board.cpu_clock)}; jetson_clocks {held}"
    cma = "unknown" if jetson.cma_bytes is None else f"{jetson.cma_bytes >> 20} MiB"
    yield f"CMA          {cma}"
    yield f"power rails  {', '.join(board.rails) or 'none can be read'}"
    yield f"tegrastats   {board.tegrastats or 'none'}"


def board_problems(
    root: Path, machine: Machine, board: BoardState, largest_bytes: int | None
) -> Iterator[str]:
    """What of the board is wrong and can be mended.

    Args:
        root: of the tree looked at.
        machine: what it is.
        board: how it is set.
        largest_bytes: of the largest variant of the bundle asked about, or None.
    """
    jetson = machine.jetson
    if jetson is None:
        return
    yield from _release_problems(jetson)
    yield from _memory_problems(jetson, machine, board, largest_bytes)
    if jetson.power_mode and not jetson.power_mode.upper().startswith("MAXN"):
        yield (
            f"power mode is {jetson.power_mode}: for full speed take the MAXN mode of /etc/nvpmodel.conf "
            "by its number (sudo nvpmodel -m N), then sudo jetson_clocks"
        )
    elif board.clocks_held is False:
        yield "clocks follow the load: for figures that can be compared, sudo jetson_clocks"
    if not board.rails:
        joules = "are tegrastats' own" if board.tegrastats else "stay unknown"
        yield (
            f"no power rail can be read (/sys/bus/i2c/drivers/ina3221), so joules {joules}: in a container "
            "-v /sys:/sys:ro, else as root"
        )
    if board.tegrastats is None:
        line = apt_install(("nvidia-l4t-tools",), root)
        yield f"tegrastats is not here: {line}; in a container -v /usr/bin/tegrastats:/usr/bin/tegrastats:ro"


def _release_problems(jetson: Jetson) -> Iterator[str]:
    if jetson.l4t is None:
        yield (
            "which L4T this is cannot be told, /etc/nv_tegra_release is not here: in a container "
            "-v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        )
    elif int(jetson.l4t.split(".")[0]) < _OLDEST_L4T:
        yield (
            f"L4T {jetson.l4t} is JetPack 5 or older, whose TensorRT 8 and Python 3.8 are too old: flash "
            "JetPack 6.2 or 7.2. A Xavier has none newer: its CPU alone, with a Python of 3.10"
        )
    elif jetson.jetpack is None:
        yield (
            f"L4T {jetson.l4t} is in no table of ours, so what its JetPack brings is unknown: see apt-cache "
            "show nvidia-jetpack. TensorRT 10.3 to 11 will do; a newer tinyllava-edge may know it"
        )
    elif jetson.jetpack == "6.0":
        yield "JetPack 6.0 has TensorRT 8.6, engines need 10.3: update to JetPack 6.2 (sudo apt dist-upgrade)"
    if jetson.chip and jetson.chip not in TEGRAS:
        yield (
            f"the chip {jetson.chip} is unknown to us: llama.cpp is built for what its compiler finds here; "
            "CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=NN names another"
        )


def _memory_problems(
    jetson: Jetson, machine: Machine, board: BoardState, largest_bytes: int | None
) -> Iterator[str]:
    cma, needed = jetson.cma_bytes, JETPACK6_CMA_BYTES
    if largest_bytes is not None:
        needed = largest_bytes + _SCRATCH_BYTES
    if (jetson.jetpack or "").startswith("6.") and cma is not None and cma < needed:
        wanted = (
            "large engines fail" if largest_bytes is None else f"this bundle's {needed >> 20} MiB may fail"
        )
        yield (
            f"CmaTotal is {cma >> 20} MiB: on JetPack 6 {wanted} with NvMap error "
            "12; add cma=950M to APPEND in /boot/extlinux/extlinux.conf and reboot"
        )
    small = machine.memory is not None and machine.memory.total_bytes < _SMALL_MEMORY_BYTES
    if small and board.swap_bytes == 0:
        yield (
            "no swap, and 8 GB or less: a build may be killed. sudo fallocate -l 8G /swapfile && sudo chmod "
            "600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
        )


def _mhz(clock: Clock | None) -> str:
    return f"{clock.now_hz / 1e6:.0f} of {clock.most_hz / 1e6:.0f} MHz" if clock else "unknown"
