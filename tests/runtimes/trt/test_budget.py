"""What a build needs, against what builds took."""

import json
import re
from pathlib import Path

import pytest

from tests.runtimes.trt.measure_engines import RESULTS
from tinyllava_edge.errors import EngineMemoryError
from tinyllava_edge.runtimes.trt.budget import check_memory

GIB = 1 << 30
SO400M_FP32 = 2 * 816_000_000  # twice the fp16 engine's 778.5 MiB of weights: docs/tensorrt.md


def machine(root: Path, *, available: int, swap: int = 0) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    kib = [size >> 10 for size in (8 * GIB, available, swap)]
    text = "MemTotal: {} kB\nMemAvailable: {} kB\nSwapFree: {} kB\n".format(*kib)
    (root / "proc/meminfo").write_text(text)
    return root


def needed_gib(root: Path, weight_bytes: int, *, shared: bool) -> float:
    with pytest.raises(EngineMemoryError) as error:
        check_memory(weight_bytes, shared=shared, workspace_bytes=GIB, root=machine(root, available=0))
    found = re.search(r"takes about (\d+\.\d) GiB", str(error.value))
    assert found is not None
    return float(found[1])


def test_the_reckoning_is_what_builds_took(tmp_path: Path) -> None:
    """Towers built here without a GPU, so that nothing lies on one."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["engines"]
    assert len(rows) == 20
    for row in rows:
        needed = needed_gib(tmp_path, row["plan"]["weight_bytes"], shared=False)
        assert needed == pytest.approx(row["peak_memory_bytes"] / GIB, rel=0.2, abs=0.1), row["engine"]


def test_float32_so400m_does_not_fit_an_orin_nano_of_8_gb_and_says_why(tmp_path: Path) -> None:
    root = machine(tmp_path, available=6 * GIB)
    arithmetic = r"about 7\.9 GiB \(4\.3 x 1\.52 of weights \+ 0\.3 \+ 1\.0 workspace\), 6\.0 are free"
    with pytest.raises(EngineMemoryError, match=arithmetic):
        check_memory(SO400M_FP32, shared=True, workspace_bytes=GIB, root=root)
    check_memory(SO400M_FP32 // 2, shared=True, workspace_bytes=GIB, root=root)  # float16 does
    machine(root, available=6 * GIB, swap=4 * GIB)
    check_memory(SO400M_FP32, shared=True, workspace_bytes=GIB, root=root)


def test_where_the_system_does_not_tell_nothing_is_refused(tmp_path: Path) -> None:
    check_memory(1 << 50, shared=True, workspace_bytes=GIB, root=tmp_path)
