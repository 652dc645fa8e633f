"""Boards and cards that a bundle may go to: what is published of them, for plans and figures made ahead.

Sources: docs/sources/tensorrt.md#boards-and-cards.
"""

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Board:
    """A device, as its maker describes it; nothing here was measured by us.

    Attributes:
        title: for people.
        sm: compute capability, "8.7".
        memory_bytes: of the GPU.
        shares_memory: whether that is the main memory too.
        reserved_bytes: what the system and its desktop hold before any program starts.
        bandwidth_bytes: of its memory, a second.
        float16_flops: dense, a second, with tensor cores that add up in float32.
        architecture: "aarch64" or "x86_64".
        python: of its JetPack ("3.10"), or "" where it is not settled by the board.
    """

    title: str
    sm: str
    memory_bytes: int
    shares_memory: bool
    reserved_bytes: int
    bandwidth_bytes: float
    float16_flops: float
    architecture: str
    python: str = ""


def _jetson(title: str, sm: str, memory: int, bandwidth: float, tflops: float, python: str) -> Board:
    # A JetPack desktop holds about 1.5 GB before anything is started; carve-outs are in it.
    return Board(
        title=title, sm=sm, memory_bytes=memory * GIB, shares_memory=True, reserved_bytes=3 * GIB // 2,
        bandwidth_bytes=bandwidth * 1e9, float16_flops=tflops * 1e12, architecture="aarch64", python=python,
    )  # fmt: skip


def _card(title: str, sm: str, memory: int, bandwidth: float, tflops: float) -> Board:
    return Board(
        title=title, sm=sm, memory_bytes=memory * GIB, shares_memory=False, reserved_bytes=GIB // 2,
        bandwidth_bytes=bandwidth * 1e9, float16_flops=tflops * 1e12, architecture="x86_64",
    )  # fmt: skip


BOARDS = {
    "orin-nano-4gb": _jetson("Jetson Orin Nano 4 GB, Super mode", "8.7", 4, 51.0, 8.5, "3.10"),
    "orin-nano-8gb": _jetson("Jetson Orin Nano 8 GB, Super mode", "8.7", 8, 102.0, 16.7, "3.10"),
    "orin-nx-8gb": _jetson("Jetson Orin NX 8 GB, Super mode", "8.7", 8, 102.4, 19.0, "3.10"),
    "orin-nx-16gb": _jetson("Jetson Orin NX 16 GB, Super mode", "8.7", 16, 102.4, 19.0, "3.10"),
    "agx-orin-32gb": _jetson("Jetson AGX Orin 32 GB", "8.7", 32, 204.8, 27.0, "3.10"),
    "agx-orin-64gb": _jetson("Jetson AGX Orin 64 GB", "8.7", 64, 204.8, 42.5, "3.10"),
    "thor-t5000": _jetson("Jetson Thor T5000", "11.0", 128, 273.0, 258.0, "3.12"),
    "t4": _card("Tesla T4", "7.5", 16, 320.0, 65.0),
    "rtx-3060-12gb": _card("GeForce RTX 3060 12 GB", "8.6", 12, 360.0, 25.5),
    "rtx-4060": _card("GeForce RTX 4060", "8.9", 8, 272.0, 30.0),
    "rtx-4070": _card("GeForce RTX 4070", "8.9", 12, 504.0, 58.0),
    "rtx-4090": _card("GeForce RTX 4090", "8.9", 24, 1008.0, 165.0),
}
