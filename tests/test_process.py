"""How the program ends: signals, and standard streams that are closed, full or not read. Real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyllava_edge.bundle import Bundle

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "tinyllava_edge"]
WORKING = """
import ctypes, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from tinyllava_edge.atomic_files import output_directory
from tinyllava_edge.memory import watched_memory
from tinyllava_edge.process import run_program

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def command():
    with output_directory(Path(sys.argv[1])) as work, watched_memory():
        (work / "half").write_bytes(bytes(1000))
        print("ready", flush=True)
        if sys.argv[2] == "in a callback":
            ctypes.CFUNCTYPE(None)(stop)()
        elif sys.argv[2] == "as another error":
            try:
                stop()
            except KeyboardInterrupt:
                raise RuntimeError("a library failed")
        elif sys.argv[2] == "twice":
            remove = shutil.rmtree
            shutil.rmtree = lambda *arguments, **options: (stop(), remove(*arguments, **options))
            try:
                stop()
            finally:
                stop()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.01)

run_program(command)
"""


def work(folder: Path, how: str = "", number: int = 0, **options: object) -> "tuple[int, str, list[str]]":
    """Exit code and words of a process that a signal reaches in its work, and what it leaves."""
    command = [sys.executable, "-c", WORKING, str(folder / "out"), how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes, **options) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == "ready\n"
        if number:
            os.kill(child.pid, number)
        _, words = child.communicate(timeout=30)
    return child.returncode, words, os.listdir(folder)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_with_its_code_and_nothing_is_left(tmp_path: Path, number: int, code: int) -> None:
    assert work(tmp_path, number=number) == (code, "tinyllava-edge: stopped.\n", [])


@pytest.mark.parametrize("how", ["in a callback", "as another error", "twice"])
def test_a_signal_is_not_lost_where_it_cannot_be_raised(tmp_path: Path, how: str) -> None:
    assert work(tmp_path, how) == (143, "tinyllava-edge: stopped.\n", [])


def test_a_signal_to_the_whole_group_ends_all_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKING, str(tmp_path / "out"), ""]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.killpg(child.pid, signal.SIGTERM)
        child.communicate(timeout=30)
        assert child.returncode == 143
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)
    assert os.listdir(tmp_path) == []


def test_what_the_caller_ignores_stays_ignored(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-c", WORKING, str(tmp_path / "out"), ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)
    assert child.returncode == 143


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", line, *PROGRAM],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=60,
    )


TINYLLAVA_EDGE = '"$0" "$@"'


@pytest.mark.parametrize("words", ["--version", "--help", "inspect nano"])
def test_an_output_that_nobody_reads_ends_it_quietly(words: str) -> None:
    done = shell(f"{TINYLLAVA_EDGE} {words} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--version", "--help"])
def test_a_full_output_is_one_line(words: str, unbuffered: str) -> None:
    done = shell(f"{TINYLLAVA_EDGE} {words} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (
        2, "tinyllava-edge: standard output: No space left on device.\n"
    )  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_as_nothing(closed: str, tmp_path: Path) -> None:
    """No file of ours may get its number: what is printed would go into it."""
    small = tmp_path / "small"
    done = shell(f"{TINYLLAVA_EDGE} prune nano -o {small} --vision fp16 --language q8_0 {closed}")
    assert (done.returncode, done.stderr) == (0, "" if "2>&-" in closed else done.stderr)
    assert os.listdir(tmp_path) == ["small"]
    assert Bundle.open(small)


def test_an_error_that_nobody_reads_is_still_its_code() -> None:
    assert shell(f"{TINYLLAVA_EDGE} inspect absent 2>&1 | true; echo ${{PIPESTATUS[0]}}").stdout == "2\n"


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    """The shell gives its bytes as they are."""
    done = shell(
        f"{TINYLLAVA_EDGE} prune nano -o {tmp_path}/$'a\\xff\\x1b[31m' --vision fp16 --language q8_0"
    )
    assert done.returncode == 0, done.stderr
    assert r"a\udcff\x1b[31m" in done.stdout
    assert os.listdir(os.fsencode(tmp_path)) == [b"a\xff\x1b[31m"]


EXPORTS = """
import os, signal, sys, time
from pathlib import Path
import tinyllava_edge.export.pipeline
from tinyllava_edge import cli
from tinyllava_edge.process import run_program
out = Path(sys.argv[1])
sys.argv = ["tinyllava-edge", "export", "nano", "-o", str(out), "--vision", "fp32"]
left = set()
for number in (signal.SIGKILL, signal.SIGTERM):
    child = os.fork()
    if child == 0:
        try:
            run_program(cli.main)
        except SystemExit as ended:
            os._exit(ended.code)  # libraries wait at their end for threads that a fork does not have
    while not (new := set(os.listdir(out.parent)) - left):
        time.sleep(0.01)
    while number == signal.SIGTERM and not any((out.parent / name / "new").is_dir() for name in new):
        time.sleep(0.01)
    os.kill(child, number)
    left = new
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *os.listdir(out.parent), flush=True)
"""


@pytest.mark.slow
def test_of_an_export_that_is_killed_or_stopped_nothing_is_left(tmp_path: Path) -> None:
    """The first one is killed; the second removes what that left, and is stopped."""
    command = [sys.executable, "-c", EXPORTS, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    killed, stopped = done.stdout.splitlines()
    code, left = killed.split()
    assert code == "-9"
    assert left.startswith(".out.tmp-")
    assert stopped == "143"
