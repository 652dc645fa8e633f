"""NVIDIA's management library through ctypes: power and memory of cards. It comes with the driver.

Signatures: nvml.h of CUDA 12.9. It makes no CUDA context, so watching takes no memory of the card.
"""

import ctypes
from collections.abc import Collection, Iterator
from ctypes import POINTER, Structure, byref, c_char_p, c_uint, c_ulonglong, c_void_p
from typing import Any

LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_NAME_BYTES = 96
_UNKNOWN_BYTES = 1 << 63  # what is larger means that the driver does not tell
_TEMPERATURE_GPU = 0


class _MemoryInfo(Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class _ProcessInfo(Structure):
    _fields_ = (
        ("pid", c_uint), ("used", c_ulonglong), ("gpu_instance", c_uint), ("compute_instance", c_uint),
    )  # fmt: skip


class Nvml:
    """The loaded library, with its cards; what a card does not tell is None.

    Args:
        library: as ctypes loads it.

    Raises:
        OSError: no driver answers.
    """

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        count = c_uint()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetCount_v2(byref(count)):
            raise OSError(f"{library}: no driver answers")
        self._library.nvmlDeviceGetHandleByIndex_v2.argtypes = (c_uint, POINTER(c_void_p))
        self._cards = list(self._handles(count.value))
        self.names = [self._name(index, card) for index, card in enumerate(self._cards)]
        if not self._cards:
            raise OSError(f"{library}: there is no card")

    def power_w(self) -> dict[str, float]:
        """Power draw of each card that tells."""
        found = {
            name: self._number("PowerUsage", card) for name, card in zip(self.names, self._cards, strict=True)
        }
        return {name: milliwatts / 1000 for name, milliwatts in found.items() if milliwatts is not None}

    def temperatures_c(self) -> dict[str, int | None]:
        """Of each card."""
        return {
            name: self._number("Temperature", card, c_uint(_TEMPERATURE_GPU))
            for name, card in zip(self.names, self._cards, strict=True)
        }

    def used_bytes(self) -> int:
        """Memory of all cards that somebody uses."""
        total = 0
        for card in self._cards:
            info = _MemoryInfo()
            if self._library.nvmlDeviceGetMemoryInfo(card, byref(info)) == 0:
                total += info.used
        return total

    def process_bytes(self, processes: Collection[int]) -> int | None:
        """What these processes use; None where the driver does not list them, as in a container."""
        found = [used for card in self._cards for pid, used in self._listed(card) if pid in processes]
        return sum(found) if found and max(found) < _UNKNOWN_BYTES else None

    def _handles(self, count: int) -> Iterator[c_void_p]:
        for index in range(count):
            card = c_void_p()
            if self._library.nvmlDeviceGetHandleByIndex_v2(index, byref(card)) == 0:
                yield card

    def _name(self, index: int, card: c_void_p) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._library.nvmlDeviceGetName.argtypes = (c_void_p, c_char_p, c_uint)
        self._library.nvmlDeviceGetName(card, text, _NAME_BYTES)
        return f"GPU {index} {text.value.decode(errors='replace')}".rstrip()

    def _number(self, what: str, card: c_void_p, *arguments: Any) -> int | None:
        found = c_uint()
        failed = getattr(self._library, f"nvmlDeviceGet{what}")(card, *arguments, byref(found))
        return None if failed else found.value

    def _listed(self, card: c_void_p) -> Iterator[tuple[int, int]]:
        count = c_uint(256)
        infos = (_ProcessInfo * count.value)()
        try:
            failed = self._library.nvmlDeviceGetComputeRunningProcesses_v3(card, byref(count), infos)
        except AttributeError:  # a driver before 510
            return
        if not failed:
            yield from ((info.pid, info.used) for info in infos[: count.value])


def open_nvml() -> Nvml | None:
    """The library, or None where there is none or no card."""
    for library in LIBRARIES:
        try:
            return Nvml(library)
        except (OSError, AttributeError):
            continue
    return None
