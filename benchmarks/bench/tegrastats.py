"""One line of NVIDIA's tegrastats, field by field.

Fields vary by board, release and privilege: docs/sources/measuring.md#tegrastats. What a line does not say is
None or absent; a word that is no known field is kept in `unknown`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_OFF_C = -256.0  # a sensor of something that is powered off


@dataclass(frozen=True)
class Rail:
    """Power of a named supply in mW: now, its average since tegrastats began, and its peak (JetPack 7)."""

    now_mw: int
    average_mw: int
    peak_mw: int | None = None


@dataclass(frozen=True)
class Core:
    """A processor core that is on."""

    load_percent: int
    mhz: int | None


@dataclass
class TegraSample:
    """What a line says; "MB" is the tool's own unit, which is MiB.

    Attributes:
        largest_blocks: free blocks of the largest size, and that size in KiB.
        cores: in their order; None for one that is off.
        gpu_load_percent: None where only clocks are printed, which is not an idle GPU.
        gpu_mhz: one for each cluster.
        engines_mhz: None for one that is off.
        temperatures_c: None for a sensor of something that is off.
    """

    time: str | None = None
    ram_used_mb: int | None = None
    ram_total_mb: int | None = None
    largest_blocks: tuple[int, int] | None = None
    swap_used_mb: int | None = None
    swap_total_mb: int | None = None
    swap_cached_mb: int | None = None
    cores: tuple[Core | None, ...] = ()
    memory_load_percent: int | None = None
    memory_mhz: int | None = None
    gpu_load_percent: int | None = None
    gpu_mhz: tuple[int, ...] = ()
    engines_mhz: dict[str, int | None] = field(default_factory=dict)
    temperatures_c: dict[str, float | None] = field(default_factory=dict)
    temperature_peaks_c: dict[str, float | None] = field(default_factory=dict)
    rails: dict[str, Rail] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def read_tegrastats(line: str) -> TegraSample:
    """Read a line; never raises, as a field that is not understood is kept as unknown."""
    sample = TegraSample()
    rest = line.strip()
    while rest:
        for pattern, take in _FIELDS:
            if found := pattern.match(rest):
                take(sample, found)
                break
        else:
            found = re.match(r"\S+", rest)
            assert found is not None
            sample.unknown.append(found[0])
        rest = rest[found.end() :].lstrip()
    return sample


def _time(sample: TegraSample, found: re.Match[str]) -> None:
    sample.time = found[0]


def _ram(sample: TegraSample, found: re.Match[str]) -> None:
    sample.ram_used_mb, sample.ram_total_mb = int(found[1]), int(found[2])
    if found[3]:
        sample.largest_blocks = int(found[3]), int(found[4]) * (1024 if found[5] == "MB" else 1)


def _swap(sample: TegraSample, found: re.Match[str]) -> None:
    sample.swap_used_mb, sample.swap_total_mb = int(found[1]), int(found[2])
    sample.swap_cached_mb = _number(found[3])


def _cpu(sample: TegraSample, found: re.Match[str]) -> None:
    shared = _number(found[2])  # one clock behind the list
    cores: list[Core | None] = []
    for text in found[1].split(","):
        load, _, mhz = text.partition("%")
        cores.append(None if text == "off" else Core(int(load), _number(mhz.lstrip("@")) or shared))
    sample.cores = tuple(cores)


def _memory(sample: TegraSample, found: re.Match[str]) -> None:
    sample.memory_load_percent, sample.memory_mhz = _number(found[1]), _number(found[2])


def _gpu(sample: TegraSample, found: re.Match[str]) -> None:
    if found[1] == "GR3D":  # GR3D2 is a second cluster's clock beside the same load
        sample.gpu_load_percent = _number(found[2])
    sample.gpu_mhz += tuple(int(mhz) for mhz in (found[3] or "").split(",") if mhz)


def _engine(sample: TegraSample, found: re.Match[str]) -> None:
    sample.engines_mhz[found[1]] = _number(found[2])


def _temperature(sample: TegraSample, found: re.Match[str]) -> None:
    sample.temperatures_c[found[1]] = _celsius(found[2])
    if found[3]:
        sample.temperature_peaks_c[found[1]] = _celsius(found[3])


def _rail(sample: TegraSample, found: re.Match[str]) -> None:
    if found[1] != "NC":  # not connected
        sample.rails[found[1]] = Rail(int(found[2]), int(found[3]), _number(found[4]))


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _celsius(text: str) -> float | None:
    return None if float(text) == _OFF_C else float(text)


_END = r"(?=\s|$)"
_INT, _CELSIUS = r"(\d{1,9})", r"(-?\d{1,4}(?:\.\d{1,6})?)"
_CORE = r"(?:off|\d{1,3}%(?:@\d{1,9})?)"
_JETPACK_4 = "GPU|CPU|SOC|CV|VDDRQ|SYS5V"  # whose rails have no unit
_FIELDS: tuple[tuple[re.Pattern[str], Callable[[TegraSample, re.Match[str]], None]], ...] = tuple(
    (re.compile(pattern + _END, re.ASCII), take)
    for pattern, take in (
        (r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d", _time),
        (rf"RAM {_INT}/{_INT}MB(?: \(lfb {_INT}x{_INT}(MB|kB)\))?", _ram),
        (rf"SWAP {_INT}/{_INT}MB(?: \(cached {_INT}MB\))?", _swap),
        (rf"CPU \[({_CORE}(?:,{_CORE})*)\](?:@{_INT})?", _cpu),
        (rf"EMC_FREQ (?=[\d@])(?:{_INT}%)?(?:@{_INT})?", _memory),
        (
            rf"(GR3D2?)_FREQ (?=[\d@])(?:{_INT}%)?(?:@\[?(\d{{1,9}}(?:,\d{{1,9}})*)\]?)?",
            _gpu,
        ),
        (rf"((?:NVENC|NVDEC|NVJPG|NVDLA|PVA|VIC|OFA|APE|SE)\d?)(?:_FREQ)? (?:off|@?{_INT})", _engine),
        (rf"(\w+)@{_CELSIUS}C(?:/{_CELSIUS}C)?", _temperature),
        (rf"(\w+) {_INT}mW/{_INT}mW(?:/{_INT}mW)?", _rail),
        (rf"({_JETPACK_4}) {_INT}/{_INT}()", _rail),
    )
)
