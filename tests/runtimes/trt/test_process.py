"""The process that builds an engine, where a program of our own stands in its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtimes.trt.engine_bundles import write_engine_bundle
from tests.runtimes.trt.fake_gpu import FakeGpu
from tinyllava_edge.errors import EngineBuildError
from tinyllava_edge.runtimes.trt import process
from tinyllava_edge.runtimes.trt.choose import DeviceBuild
from tinyllava_edge.runtimes.trt.cudart import open_cudart
from tinyllava_edge.runtimes.trt.options import EngineOptions


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "builder"
    monkeypatch.setattr("sys.executable", str(path))
    return path


def run(script: Path, lines: str) -> dict[str, object]:
    script.write_text(f"#!/bin/sh\n{lines}\n")
    script.chmod(0o755)
    return process.build_engine_apart(script, EngineOptions(), script.with_name("engine"))


def test_a_library_that_says_much_does_not_stop_the_build(script: Path) -> None:
    """More than a pipe holds, before and after the answer."""
    words = "head -c 300000 /dev/zero >&2"
    assert run(script, f'{words}; echo "{{\\"result\\": {{\\"a\\": 1}}}}"; {words}') == {"a": 1}


def test_the_last_words_of_a_process_that_ends_are_told(script: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"ended with code 3: .*the end\. Try again"):
        run(script, "head -c 100000 /dev/zero | tr '\\0' x >&2; echo ' the end' >&2; exit 3")
    with pytest.raises(EngineBuildError, match="ended with code 0: it said nothing"):
        run(script, "exit 0")


def test_the_process_offers_itself_where_memory_runs_out() -> None:
    code = (
        "from pathlib import Path; from tinyllava_edge.runtimes.trt import process;"
        "process._offer_to_the_system(); print(Path('/proc/self/oom_score_adj').read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1000"
    assert Path("/proc/self/oom_score_adj").read_text().strip() != "1000"


@pytest.mark.parametrize(
    ("visible", "device", "shown"),
    [(None, 0, None), (None, 2, "2"), ("3,5", 1, "5"), ("GPU-a,GPU-b", 1, "GPU-b"), ("", 1, "1")],
)
def test_a_build_sees_only_its_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: int, shown: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert process._only_gpu(device).get("CUDA_VISIBLE_DEVICES") == shown


def test_while_a_child_builds_its_parent_holds_no_cuda_context(gpu: FakeGpu, tmp_path: Path) -> None:
    """The whole ladder, with a step that is left: in no moment has this process made a device current."""
    bundle = write_engine_bundle(tmp_path / "bundle", ("fp32", "fp16"))
    gpu.spoil(fp16="nan")
    before = gpu.contexts
    choice = DeviceBuild(bundle, EngineOptions()).choose()
    assert (choice.runtime, choice.vision) == ("tensorrt+llamacpp", "fp32")
    assert gpu.contexts == before
    open_cudart()
    assert gpu.contexts == before + 1  # the counter counts
