"""Most memory that a process makes a GPU hold, beside what the host's own count (VmHWM) shows.

Where GPU and host share their memory, an allocation of the GPU is in no process's resident set: what counts
is how far the system's available memory fell. A card is asked through NVML: the process's own, or, where the
driver does not list processes (containers, WSL), how much more of the card is used than before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tinyllava_edge.jetson import read_jetson
from tinyllava_edge.machine_files import read_meminfo

from .nvml import open_nvml
from .sampling import Sampler, polled

INTERVAL_S = 0.02
SHARED, CARD = "shared", "card"
LABELS = {
    SHARED: "host + GPU MB (drop of MemAvailable)",
    CARD: "GPU MB (NVML)",
}


@dataclass
class DeviceWatch:
    """What was seen so far.

    Attributes:
        kind: "shared" or "card".
        before: bytes available (shared) or used by all (card) at the beginning.
        samples: available bytes (shared), or bytes that all use and that the process uses (card).
    """

    kind: str
    before: int
    process: int | None = None
    samples: list[tuple[float, tuple[int, int | None]]] = field(default_factory=list)

    def peak_bytes(self) -> int | None:
        """The most that was held beyond what was held before; None where nothing was read."""
        values = [value for _, value in self.samples]
        own = [used for _, used in values if used is not None]
        if own:
            return max(own)
        if not values:
            return None
        held = [self.before - value if self.kind == SHARED else value - self.before for value, _ in values]
        return max(0, *held)


@contextmanager
def watched_device(root: Path = Path("/")) -> Iterator[DeviceWatch | None]:
    """Watch the memory of this machine's GPU until the block ends; None where there is none.

    Set `process` of what is given to the id of the process that counts, as soon as it has one.
    """
    kind, read = _reader(root)
    if not kind or (first := read(None)) is None:
        yield None
        return
    watch = DeviceWatch(kind, first[0])

    def readings() -> Iterator[tuple[int, int | None]]:
        for value in polled(lambda: read(watch.process), INTERVAL_S):
            if value is not None:
                yield value

    sampler = Sampler(readings())
    watch.samples = sampler.samples
    try:
        yield watch
    finally:
        sampler.close()


def device_kind(root: Path = Path("/")) -> str:
    """`SHARED`, `CARD`, or nothing where there is no GPU."""
    return _reader(root)[0]


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a program could still take (MemAvailable of proc_meminfo(5))."""
    return read_meminfo(root, "MemAvailable")


Reader = Callable[[int | None], "tuple[int, int | None] | None"]


def _reader(root: Path) -> tuple[str, Reader]:
    if read_jetson(root) is not None:

        def shared(process: int | None) -> tuple[int, int | None] | None:
            found = available_bytes(root)
            return None if found is None else (found, None)

        return SHARED, shared
    cards = open_nvml()
    if cards is None:
        return "", lambda process: None
    return CARD, lambda process: (
        cards.used_bytes(),
        None if process is None else cards.process_bytes({process}),
    )
