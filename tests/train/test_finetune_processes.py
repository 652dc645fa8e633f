"""Two processes of torchrun on this machine (gloo): the steps of one that accumulates, and one that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.own_data import write_own_data, write_small_checkpoint
from tinyllava_edge.train.data import read_lines

pytestmark = [pytest.mark.long, pytest.mark.slow]
# A module that torchrun runs, and the options that go with it.
WAYS = {"ddp": ("tinyllava_edge", []), "fsdp": ("tests.train.fsdp_on_cpu", ["--fsdp"])}
PLACE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_own_data(folder, count=12)
    write_small_checkpoint(folder / "source")
    return folder


def _command(module: str, *, processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", module]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", module]
    return [sys.executable, "-m", *launch]


def _options(folder: Path, out: str, *more: str) -> list[str]:
    return [
        *("train", "--data", str(folder / "data.json"), "--from", str(folder / "source")),
        *("-o", str(folder / out), "--precision", "fp32", "--learning-rate", "3e-3", "--batch-size", "2"),
        *("--recipe", "lora", "--lora-dropout", "0", "--lora-rank", "4", "--lora-alpha", "8"),
        *("--save-every", "2", "--epochs", "2", "--threads", "1", *more),
    ]


def _start(command: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(PLACE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PLACE
    )


def _losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_lines(out / "training_log.jsonl")]


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """One process that accumulates two batches a step."""
    process = _start(
        _command("tinyllava_edge", processes=1) + _options(folder, "one", "--gradient-accumulation", "2")
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert len(_losses(folder / "one")) == 6
    return folder / "one"


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_the_steps_of_one_that_accumulates(folder: Path, one: Path, way: str) -> None:
    module, more = WAYS[way]
    process = _start(_command(module, processes=2) + _options(folder, way, "--json", *more))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (line,) = output.splitlines()  # of the first process alone
    assert json.loads(line)["steps"] == 6
    assert _losses(folder / way) == pytest.approx(_losses(one), abs=1e-6)
    states = [load_file(out / "model.safetensors") for out in (folder / way, one)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=1e-5)


def _pid_of_second(work: Path, launcher: int) -> int:
    """The second process, once the log has five lines: a snapshot of four steps is there."""
    log = work / "training_log.jsonl"
    for _ in range(6000):
        if log.exists() and log.read_bytes().count(b"\n") >= 5:
            break
        time.sleep(0.005)
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: pid for pid in children}
    return int(ranks[b"1"])


@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(
    folder: Path, one: Path, way: str
) -> None:
    module, more = WAYS[way]
    name = f"{way}-killed"
    command = _command(module, processes=2) + _options(folder, name, "--json", *more)
    process = _start(command)
    os.kill(_pid_of_second(folder / f"{name}.work", process.pid), signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=120)
    assert process.returncode
    assert time.monotonic() - began < 60
    assert not (folder / name).exists()
    process = _start([*command, "--resume"])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(output)["resumed_at"] >= 2
    assert _losses(folder / name) == pytest.approx(_losses(one), abs=1e-6)
    assert not (folder / f"{name}.work").exists()


def test_more_processes_than_records_are_one_line(folder: Path, tmp_path: Path) -> None:
    records = json.loads((folder / "data.json").read_text())[:1]
    (tmp_path / "data.json").write_text(json.dumps(records))
    options = _options(folder, "few", "--data", str(tmp_path / "data.json"))
    process = _start(_command("tinyllava_edge", processes=2) + options)
    _, errors = process.communicate(timeout=300)
    lines = [line for line in errors.splitlines() if line.startswith("tinyllava-edge: ")]
    assert [line for line in lines if "stopped" not in line] == [
        "tinyllava-edge: 2 processes, but 1 records: each process needs one a step. Start fewer processes, "
        "or give more data."
    ]


def test_a_bad_record_that_any_process_meets_is_left_out_in_all(folder: Path, tmp_path: Path) -> None:
    write_own_data(tmp_path, count=12)
    for number in (2, 7):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    command = _command("tinyllava_edge", processes=2)
    options = _options(folder, "bad", "--data", str(tmp_path / "data.json"), "--images", str(tmp_path))
    process = _start([*command, *options])
    _, errors = process.communicate(timeout=300)
    assert sum("--resume --skip-bad" in line for line in errors.splitlines()) == 1, errors
    process = _start([*command, *options, "--resume", "--skip-bad", "--json"])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(output)["left_out"] == {"damaged picture": 2}
    assert json.loads(output)["steps"] == 6
