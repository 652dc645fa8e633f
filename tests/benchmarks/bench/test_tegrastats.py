"""The 32 recorded lines, each with what stands in it, written down by reading them. No board."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.bench.boards import FIXTURE, recorded_lines
from tinyllava_edge.benchmarks.bench.tegrastats import Core, Rail, TegraSample, read_tegrastats

LINES = recorded_lines()
READ = json.loads(FIXTURE.with_suffix(".json").read_text(encoding="utf-8"))
NANO_ENGINES = {"NVDEC": None, "NVJPG": None, "NVJPG1": None, "VIC": None, "OFA": None, "APE": 200}
ENGINES = {
    **dict.fromkeys((*range(8), 25), NANO_ENGINES),
    13: {
        **dict.fromkeys(("NVENC0", "NVDEC0", "NVJPG0", "NVJPG1", "VIC", "OFA", "NVDLA0", "NVDLA1", "PVA0")),
        "APE": 174,
    },
    14: {"VIC": 729, "APE": 174},
    15: {"VIC": 115, "NVDLA0": 1600, "APE": 174},
    19: {"NVENC0": 1691, "VIC": None},
    28: {"NVJPG1": 729, "VIC": 115, "APE": 233},
}


def told(sample: TegraSample) -> dict[str, Any]:
    """A sample as tests/fixtures/tegrastats.json has it, which was written by reading the lines."""
    degrees = list(sample.temperatures_c.values())
    first = sample.cores[0] if sample.cores else None
    rails = [(rail.now_mw, rail.average_mw, rail.peak_mw) for rail in sample.rails.values()]
    swap = (sample.swap_used_mb, sample.swap_total_mb, sample.swap_cached_mb)
    found = {
        "ram_mb": None if sample.ram_used_mb is None else (sample.ram_used_mb, sample.ram_total_mb),
        "free_blocks_kib": sample.largest_blocks,
        "swap_mb": None if sample.swap_used_mb is None else swap,
        "cores": len(sample.cores),
        "cores_off": [index for index, core in enumerate(sample.cores) if core is None],
        "first_core": None if first is None else (first.load_percent, first.mhz),
        "memory": (sample.memory_load_percent, sample.memory_mhz),
        "gpu_percent": sample.gpu_load_percent,
        "gpu_mhz": sample.gpu_mhz,
        "rails": list(sample.rails),
        "rails_mw": [[value for value in rail if value is not None] for rail in rails],
        "hottest_c": max((value for value in degrees if value is not None), default=None),
        "sensors_off": degrees.count(None),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


@pytest.mark.parametrize("index", range(32))
def test_a_recorded_line(index: int) -> None:
    sample = read_tegrastats(LINES[index])
    assert told(sample) == READ[index]
    assert sample.engines_mhz == ENGINES.get(index, {})
    assert sample.unknown == (["FUTURE_TOKEN", "value"] if index == 19 else [])
    assert sample.time == (LINES[index][:19] if LINES[index][:2].isdigit() else None)


def test_there_are_32_lines() -> None:
    assert len(LINES) == len(READ) == 32


def test_peaks_of_jetpack_7_and_sensors_that_are_off() -> None:
    agx = read_tegrastats(LINES[16])
    assert agx.temperatures_c["cpu"] == 47.906
    assert agx.temperature_peaks_c["cpu"] == 48.343
    assert read_tegrastats(LINES[14]).temperatures_c["GPU"] is None
    assert read_tegrastats(LINES[20]).cores == (Core(0, 2601), Core(5, 2601), None)


@pytest.mark.parametrize(
    "text",
    [
        "GR3D_FREQ off",
        "CPU [0%,]",
        "EMC_FREQ",
        "cpu@1.2.3C",
        "FOO 3/4",
        "RAM 12/MB",
        "VDD_IN 5mW",
        "NVENC maybe",
    ],
)
def test_what_is_not_known_is_not_guessed(text: str) -> None:
    sample = read_tegrastats(f"{text} VDD_IN 1mW/2mW")
    assert sample.unknown == text.split()
    assert sample.rails == {"VDD_IN": Rail(1, 2)}


@given(st.text(alphabet="RAMCPU GR3D_FREQ0123456789@[]%,/mW.-()off\u0663", max_size=80))
def test_no_text_ends_it(text: str) -> None:
    read_tegrastats(text)
