"""`bench compare` on two reports of which one was changed by hand. No model."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.benchmarks.bench.compare import (
    compare_cells,
    differences,
    read_report,
    small_differences,
    source_difference,
    unmatched,
)
from tinyllava_edge.benchmarks.bench.compare_cli import comparison_lines
from tinyllava_edge.benchmarks.verify.versions import package_versions
from tinyllava_edge.errors import DataError


def cell(name: str, language: str | None, total_ms: float) -> dict[str, Any]:
    """Three blocks of a session, within 1 % of `total_ms`."""
    runs = [
        {"total_ms": total_ms * factor, "first_token_ms": total_ms / 2 * factor} for factor in (0.99, 1, 1.01)
    ]
    requests = [[{"warm": run}, {"warm": run}] for run in runs]
    return {
        "name": name,
        "model": "m",
        "runtime": "torch" if language is None else "onnxruntime+llamacpp",
        "vision": None if language is None else "fp32",
        "language": language,
        "warm": {"total_ms": total_ms, "first_token_ms": total_ms / 2},
        "sessions": [{"requests": requests}],
    }


@pytest.fixture
def record() -> dict[str, Any]:
    machine: dict[str, Any] = dict.fromkeys(
        ["python", "gpus", "jetson", "distribution", "virtualization", "cpu_settings", "memory_settings"]
    )
    machine |= {"system": "Linux 6", "cpu": {"model": "EPYC", "usable_cores": 2}, "variables": {}}
    machine["memory"] = {"total_bytes": 8, "available_bytes": 4}
    machine |= {"versions": {"tinyllava-edge": "0.1.0", "numpy": "2.4.6"}, "source": {"commit": "a" * 40}}
    return {
        "schema_version": 2,
        "bundles": [{"name": "m", "manifest_sha256": "1" * 64, "checkpoint_sha256": "2" * 64}],
        "request": {"question": "?", "num_tokens": 64, "picture": {"name": "a.png", "sha256": "3" * 64}},
        "machine": machine,
        "control": "torch fp32 again",
        "cells": [
            cell("torch fp32", None, 100.0),
            cell("fp32 + q8_0", "q8_0", 40.0),
            cell("torch fp32 again", None, 100.0),
        ],
    }


def test_what_is_slower_now_is_found(record: dict[str, Any]) -> None:
    later = copy.deepcopy(record)
    later["cells"][1] = cell("renamed since", "q8_0", 50.0)
    later["machine"]["memory"]["available_bytes"] = 1  # changes all the time
    assert differences(record, later) == []
    torch_total, _, q8_0_total, _ = compare_cells(record, later)
    assert torch_total.ratio.verdict == "equivalent"
    assert q8_0_total.ratio.ratio == pytest.approx(0.8)
    assert q8_0_total.ratio.verdict == "slower"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("machine", "cpu", "model"), "Xeon", "machine cpu model: EPYC / Xeon"),
        (("machine", "versions", "numpy"), "2.5", "versions numpy: 2.4.6 / 2.5"),
        (("request", "num_tokens"), 32, "request num_tokens: 64 / 32"),
        (("request", "picture", "sha256"), "4" * 64, "request picture sha256: "),
        (("bundles", 0, "manifest_sha256"), "5" * 64, "model m manifest_sha256: "),
    ],
)
def test_unlike_environments_are_named(
    record: dict[str, Any], place: tuple[Any, ...], value: Any, said: str
) -> None:
    other = copy.deepcopy(record)
    part: Any = other
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (difference,) = differences(record, other)
    assert str(difference).startswith(said)


@pytest.mark.parametrize(
    ("place", "values", "small"),
    [
        (("system",), ("Linux 6.18.44-fc-v657", "Linux 6.18.51"), True),
        (("system",), ("Linux 6.18.44", "Linux 6.1.44"), False),
        (("system",), ("Linux 6.18.44", "Darwin 6.18.44"), False),
        (("python",), ("3.11.7", "3.11.9"), True),
        (("python",), ("3.11.7", "3.12.7"), False),
        (("memory", "total_bytes"), (25_276_510_208, 25_276_502_016), True),  # the same board, 8 KB apart
        (("memory", "total_bytes"), (25_276_510_208, 16_000_000_000), False),
        (("memory", "total_bytes"), (25_276_510_208, None), False),
    ],
)
def test_a_patch_and_a_little_memory_are_shown_and_not_refused(
    record: dict[str, Any], place: tuple[str, ...], values: tuple[Any, Any], small: bool
) -> None:
    records = []
    for value in values:
        records.append(copy.deepcopy(record))
        part: Any = records[-1]["machine"]
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
    assert len(small_differences(*records)) == small
    assert len(differences(*records)) == (not small)


def test_a_comparison_fits_80_columns(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    for each in (record, other):
        each["cells"] = [cell("onnxruntime-cuda+llamacpp fp16 + q4_k_m", "q4_k_m", 123456.0)]
    lines = list(comparison_lines(compare_cells(record, other)))
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80


def test_our_own_version_is_what_a_comparison_is_about(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    other["machine"]["versions"]["tinyllava-edge"] = "0.2.0"
    assert differences(record, other) == []
    assert "0.2.0" in str(source_difference(record, other))
    assert source_difference(record, record) is None


def test_a_cell_that_one_report_has_not_is_listed(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    del other["cells"][1]
    assert unmatched(record, other) == ["fp32 + q8_0"]
    assert {compared.name for compared in compare_cells(record, other)} == {"torch fp32"}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema_version": 1, "cells": []}', '{"schema_version": 2, "cells": []}']
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError):
        read_report(tmp_path)


def _run_of(record: dict[str, Any]) -> dict[str, Any]:
    run: dict[str, Any] = record["cells"][0]["sessions"][0]["requests"][0][0]["warm"]
    return run


DAMAGES: dict[str, Any] = {
    "no machine": lambda r: r.pop("machine"),
    "machine is a text": lambda r: r.update(machine="EPYC"),
    "no version of ours": lambda r: r["machine"]["versions"].pop("tinyllava-edge"),
    "a source of another form": lambda r: r["machine"].update(source=["a"]),
    "memory is a number": lambda r: r["machine"].update(memory=8),
    "bundles are names": lambda r: r.update(bundles=["m"]),
    "a cell's name is a list": lambda r: r["cells"][0].update(name=["torch"]),
    "a cell without times": lambda r: r["cells"][0].pop("warm"),
    "no sessions": lambda r: r["cells"][0].update(sessions=[]),
    "a block of three runs": lambda r: r["cells"][0]["sessions"][0]["requests"][0].append({"warm": {}}),
    "a time of zero": lambda r: _run_of(r).update(total_ms=0),
    "a negative time": lambda r: _run_of(r).update(total_ms=-1.0),
    "a time that is a text": lambda r: _run_of(r).update(first_token_ms="12"),
    "a time that is true": lambda r: _run_of(r).update(first_token_ms=True),
    "a time that is no number": lambda r: _run_of(r).update(total_ms=float("nan")),
    "a time without end": lambda r: _run_of(r).update(total_ms=float("inf")),
    "a time of 400 digits": lambda r: _run_of(r).update(total_ms=10**400),
    "a request without end": lambda r: r["request"].update(num_tokens=float("inf")),
    "a deep request": lambda r: r["request"].update(json.loads('{"a":' * 500 + "1" + "}" * 500)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_is_named(record: dict[str, Any], tmp_path: Path, damage: str) -> None:
    DAMAGES[damage](record)
    (tmp_path / "report.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"report\.json: ") as caught:
        read_report(tmp_path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema_version": 1e999}', '{"schema_version": "' + "a" * 9999 + '"}']
)
def test_what_is_hardly_json_is_named_and_not_repeated(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_report(tmp_path)
    assert len(str(caught.value)) < 600


def compare(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tinyllava_edge", "bench", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_refuses_unlike_reports_until_it_is_forced(
    record: dict[str, Any], tmp_path: Path
) -> None:
    for name, model in (("a", "EPYC"), ("b", "Xeon")):
        record["machine"]["cpu"]["model"] = model
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(record))
    both = (tmp_path / "a", tmp_path / "b" / "report.json")
    refused = compare(*both)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "machine cpu model: EPYC / Xeon" in refused.stderr
    forced = compare(*both, "--force", "--json")
    assert forced.returncode == 0, forced.stderr
    printed = json.loads(forced.stdout)
    assert printed["unlike"] == [{"what": "machine cpu model", "first": "EPYC", "second": "Xeon"}]
    assert [cell["verdict"] for cell in printed["cells"]] == ["equivalent"] * 4
    table = compare(*both, "--force")
    assert "unlike: machine cpu model: EPYC / Xeon" in table.stdout
    assert table.stdout.count("equivalent") == 4


def test_a_missing_report_is_one_line(tmp_path: Path) -> None:
    result = compare(tmp_path / "a", tmp_path / "b")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_package_that_a_report_of_before_never_asked_for_tells_nothing() -> None:
    committed = read_report(Path(__file__).parents[3] / "benchmarks" / "results" / "nano")
    today = copy.deepcopy(committed)
    today["machine"]["versions"] = {**package_versions(), **committed["machine"]["versions"]}
    assert differences(committed, today) == []
    today["machine"]["versions"]["onnxruntime"] = "9.9"
    assert [found.what for found in differences(committed, today)] == ["versions onnxruntime"]
