"""`hardware-check` from end to end on this machine, with nano. CPU."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tinyllava_edge.benchmarks.hardware.report import report_mark
from tinyllava_edge.cli import app
from tinyllava_edge.device import has_nvidia_gpu

QUICK = ("--runs", "2", "--tokens", "4")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINYLLAVA_EDGE_REQUIRE", raising=False)


@pytest.mark.slow
@pytest.mark.skipif(has_nvidia_gpu(), reason="what is skipped here is done where a GPU is")
def test_without_a_gpu_it_skips_with_reasons_and_says_what_was_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(app, ["hardware-check", *QUICK, "--peers", "all", "--soak", "0.01", "--json"])
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    states = {step["name"]: (step["state"], step["reason"]) for step in record["steps"]}
    no_gpu = ("skipped", "no NVIDIA GPU is here")
    for name in ("device-tests", "build-nano", "peer-llama-server", "peer-vllm", "peer-transformers-cuda"):
        assert states[name] == no_gpu
    for name in ("install", "verify-nano-onnxruntime+llamacpp", "bench-nano", "soak-nano"):
        assert states[name] == ("passed", "")
    assert record["judged"][0]["why_none"].startswith("this machine is none of those")
    folder = tmp_path / "hardware-check"
    assert report_mark(folder) == ""
    with tarfile.open(tmp_path / "hardware-check.tar.gz") as archive:
        names = archive.getnames()
    assert {"hardware-check/report.md", "hardware-check/bench-nano/report.json"} <= set(names)
    (folder / "mine").write_text("")
    assert report_mark(folder).startswith("holds mine")
    (folder / "mine").unlink()

    monkeypatch.setenv("TINYLLAVA_EDGE_REQUIRE", "cuda,jetson")
    monkeypatch.setattr("tinyllava_edge.benchmarks.hardware.plan.further_steps", lambda *words: iter(()))
    again = CliRunner().invoke(app, ["hardware-check", "--force"])
    assert again.exit_code == 1
    assert "REQUIRED AND MISSING: cuda: no NVIDIA GPU is here." in again.stdout
    assert "REQUIRED AND MISSING: jetson: this is no Jetson." in again.stdout


@pytest.mark.parametrize(
    ("words", "required", "said"),
    [
        (("--peers", "ollama"), "", "--peers ollama: expected llama-server"),
        (("--modes", "11W"), "", "--modes 11W: this machine has no such power mode"),
        ((), "gpu", "TINYLLAVA_EDGE_REQUIRE: expected cuda, jetson"),
        (("-o", "."), "", "exists already"),
        (("no-such-bundle",), "", "no-such-bundle"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(
    words: tuple[str, ...], required: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLAVA_EDGE_REQUIRE", required)
    result = CliRunner().invoke(app, ["hardware-check", *words])
    assert said in str(result.exception)
    assert not any(tmp_path.iterdir())


def test_a_foreign_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "hardware-check").mkdir()
    (tmp_path / "hardware-check" / "notes.md").write_text("mine")
    result = CliRunner().invoke(app, ["hardware-check", "--force"])
    assert "--force replaces only what this command wrote" in str(result.exception)
    assert (tmp_path / "hardware-check" / "notes.md").read_text() == "mine"
