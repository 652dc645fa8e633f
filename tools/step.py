"""Run one long step and say what it is doing: `python tools/step.py "what, and about how long" COMMAND...`.

A line at its start, one every 20 seconds with the last thing that the command said (pip tells what it
compiles on either stream), and one at its end; where it fails, the end of what it said.

Needs nothing but Python: the Makefile runs it before anything is installed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

EVERY_S = 20.0
_END_LINES, _WIDTH = 40, 88
_FOR_PEOPLE = "llama.cpp: "  # begins what `tinyllava_edge.install` says of a build that leaves something out
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def run_step(what: str, command: Sequence[str], *, every_s: float = EVERY_S) -> int:
    """Run a command; its exit code.

    Args:
        what: it does, and about how long that takes.
        command: the program and its arguments; pip among it says what it compiles.
        every_s: between signs of life, seconds.
    """
    _say(f"== {what}")
    start = time.monotonic()
    with tempfile.NamedTemporaryFile("w+b", suffix=".log") as log:
        environment = {"PIP_VERBOSE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **os.environ}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while True:
                try:
                    code = process.wait(every_s)
                    break
                except subprocess.TimeoutExpired:
                    _say(f"   {_minutes(time.monotonic() - start)}: {_last_lines(log, 1)[-1][:_WIDTH]}")
        except BaseException:
            process.terminate()
            process.wait()
            raise
        log.seek(0)
        said = [
            line.decode(errors="replace").rstrip() for line in log if line.startswith(_FOR_PEOPLE.encode())
        ]
        _say(*(_last_lines(log, _END_LINES) if code else said))
    ended = f"FAILED, exit code {code}," if code else "done"
    _say(f"   {ended} after {_minutes(time.monotonic() - start)}")
    return code


def _last_lines(log: IO[bytes], count: int) -> list[str]:
    """Of what a command said; at least one."""
    size = os.fstat(log.fileno()).st_size
    text = os.pread(log.fileno(), 1 << 16, max(0, size - (1 << 16))).decode(errors="replace")
    lines = [_ESCAPES.sub("", line).strip() for line in text.replace("\r", "\n").splitlines()]
    return [line for line in lines if line][-count:] or ["it has said nothing yet"]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _say(*lines: str) -> None:
    sys.stderr.writelines(f"{line}\n" for line in lines)
    sys.stderr.flush()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit('usage: python tools/step.py "what, and about how long" COMMAND...')
    try:
        sys.exit(run_step(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
