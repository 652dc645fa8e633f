"""Power while something runs: rails of a Jetson, or cards; joules of a stretch of time.

Where it comes from, best first: INA3221 sensors in sysfs (no privilege, fast), tegrastats, NVML. What each
rail feeds: docs/sources/measuring.md#power-rails.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tinyllava_edge.board_state import power_rails
from tinyllava_edge.machine_files import read_number

from .nvml import open_nvml
from .sampling import Sampler, polled
from .tegrastats import read_tegrastats

Watts = dict[str, float]  # of each rail, by its name
INTERVAL_S = {"ina3221": 0.02, "tegrastats": 0.1, "nvml": 0.05}
ABSENT, DENIED = "absent", "denied"
WHOLE_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")  # what everything behind it takes: module, board, module
_MOST_GAP_S = 1.0  # between two samples of one stretch


@dataclass(frozen=True)
class PowerSource:
    """Where power can be read, or why not.

    Attributes:
        name: a key of `INTERVAL_S`, "absent" or "denied".
        rails: their names, where they are known before anything is read.
        start: begins to read.
    """

    name: str
    rails: tuple[str, ...] = ()
    start: Callable[[], Sampler[Watts]] | None = None


def find_power(root: Path = Path("/")) -> PowerSource:
    """The best source of this machine.

    Args:
        root: where `sys` is; tests have their own.
    """
    rails = power_rails(root)
    if rails and (readable := read_rails(rails)):
        return PowerSource("ina3221", tuple(readable), lambda: _polled("ina3221", lambda: read_rails(rails)))
    if program := shutil.which("tegrastats"):
        return PowerSource("tegrastats", (), lambda: _tegrastats(program))
    if (cards := open_nvml()) is not None and (found := cards.power_w()):
        return PowerSource("nvml", tuple(found), lambda: _polled("nvml", cards.power_w))
    return PowerSource(DENIED if rails else ABSENT)


def read_rails(rails: dict[str, tuple[Path, ...]]) -> Watts:
    """Watts of each rail of `power_rails`; without those that do not tell."""
    found = {}
    for name, files in rails.items():
        millivolts, milliamperes = map(read_number, files)
        if millivolts is not None and milliamperes is not None:
            found[name] = millivolts * milliamperes / 1e6
    return found


def _polled(name: str, read: Callable[[], Watts]) -> Sampler[Watts]:
    return Sampler(polled(read, INTERVAL_S[name]))


def _tegrastats(program: str) -> Sampler[Watts]:
    interval_ms = str(round(1000 * INTERVAL_S["tegrastats"]))
    process = subprocess.Popen(
        [program, "--interval", interval_ms], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def readings() -> Iterator[Watts]:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                rails = read_tegrastats(line).rails
                yield {name: rail.now_mw / 1000 for name, rail in rails.items()}

    def stop() -> None:
        process.kill()
        process.wait()

    return Sampler(readings(), stop)


@dataclass
class PowerWatch:
    """What was read so far.

    Attributes:
        source: name of where it comes from, "absent" or "denied".
        samples: times in seconds of `time.monotonic`, and watts.
    """

    source: str
    samples: list[tuple[float, Watts]] = field(default_factory=list)

    def joules(self, start_s: float, end_s: float) -> Watts | None:
        """Energy of each rail between two times: trapezoids, with the ends interpolated.

        Returns:
            None where the samples do not reach around that time, or leave more than a second out.
        """
        # The last one before, all within, the first one behind.
        times = [time for time, _ in self.samples]
        first = max((i for i, time in enumerate(times) if time <= start_s), default=None)
        last = next((i for i, time in enumerate(times) if time >= end_s), None)
        if first is None or last is None or end_s <= start_s:
            return None
        part = self.samples[first : last + 1]
        if any(after - before > _MOST_GAP_S for (before, _), (after, _) in pairwise(part)):
            return None
        names = set.intersection(*(set(watts) for _, watts in part))
        return {
            name: _integral([(t, w[name]) for t, w in part], start_s, end_s) for name in sorted(names)
        } or None

    @property
    def is_read(self) -> bool:
        """Whether there is a source."""
        return self.source in INTERVAL_S

    def mean_so_far_w(self) -> Watts | None:
        """Mean power of each rail over all samples; None for fewer than two."""
        if len(self.samples) < 2:
            return None
        start, end = self.samples[0][0], self.samples[-1][0]
        found = self.joules(start, end)
        return None if found is None else {name: joules / (end - start) for name, joules in found.items()}


def _integral(points: list[tuple[float, float]], start: float, end: float) -> float:
    total = 0.0
    for (t0, w0), (t1, w1) in pairwise(points):
        low, high = max(t0, start), min(t1, end)
        if high > low:
            slope = (w1 - w0) / (t1 - t0)
            total += (high - low) * (w0 + slope * ((low + high) / 2 - t0))
    return total


@contextmanager
def watched_power(root: Path = Path("/")) -> Iterator[PowerWatch]:
    """Read power until the block ends; without a source nothing is read, and that is no error."""
    source = find_power(root)
    if source.start is None:
        yield PowerWatch(source.name)
        return
    sampler = source.start()
    try:
        yield PowerWatch(source.name, sampler.samples)
    finally:
        sampler.close()


def whole_of(rails: Watts) -> tuple[str, float]:
    """The rail that everything is behind, or the sum of all, with its name spelled out."""
    for name in WHOLE_RAILS:
        if name in rails:
            return name, rails[name]
    return " + ".join(rails), sum(rails.values())


def includes(source: str, rails: Watts) -> str:
    """What the figure called whole has in it, in words."""
    name, _ = whole_of(rails)
    if source == "nvml":
        return f"{name}: the card with its memory, without the host"
    if re.fullmatch("|".join(WHOLE_RAILS), name):
        return f"{name}: all that this board's input feeds, host and GPU alike"
    return f"{name}: host and GPU; this board measures no common input, and what else it feeds is not in it"


def power_card(root: Path = Path("/")) -> dict[str, Any]:
    """What the machine card says of it: the source in one word, and its rails."""
    source = find_power(root)
    return {"source": source.name, "rails": list(source.rails)}
