"""Steps of a check: each runs its commands in processes of their own, and its result is kept as it comes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import write_json

from .probes import PROBES

Record = dict[str, Any]
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something to do.

    Attributes:
        name: also of its files: letters, digits, `-`, `_` and `.`.
        commands: run one after the other; the first that fails ends the step.
        after: run at the end, whatever happened.
        needs: probes that must find nothing missing.
        skip: why it is not done, where that is known already.
        minutes: the most that all commands may take.
        variables: of the environment, beside those that are set.
        has_run: whether it was ever run on its hardware.
    """

    name: str
    commands: tuple[tuple[str, ...], ...] = ()
    after: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ()
    skip: str = ""
    minutes: float = 30
    variables: Mapping[str, str] = field(default_factory=dict)
    has_run: bool = False


def reason_to_skip(step: Step) -> str:
    """Why a step is not done here, or nothing."""
    return step.skip or next((reason for need in step.needs if (reason := PROBES[need]())), "")


def run_step(step: Step, folder: Path) -> Record:
    """Do it, and write steps/NAME.json, logs/NAME.txt; it raises nothing that a command can cause.

    Returns:
        name, state, reason (of a step that failed or was skipped), seconds, commands, has_run and result, the
        last line of JSON that it printed.
    """
    record: Record = {
        "name": step.name, "state": SKIPPED, "reason": reason_to_skip(step), "seconds": 0.0,
        "commands": [list(command) for command in step.commands], "has_run": step.has_run, "result": None,
    }  # fmt: skip
    for name in ("steps", "logs"):
        (folder / name).mkdir(exist_ok=True)
    if not record["reason"]:
        start = time.monotonic()
        log = folder / "logs" / f"{step.name}.txt"
        with log.open("w", encoding="utf-8") as out:
            record["reason"] = _run_all(step, out, start + 60 * step.minutes)
            for command in step.after:
                _run(command, out, time.monotonic() + 60, {})
        record["seconds"] = round(time.monotonic() - start, 1)
        record["state"] = FAILED if record["reason"] else PASSED
        record["result"] = _last_json(log)
    write_json(folder / "steps" / f"{step.name}.json", record)
    return record


def _run_all(step: Step, out: Any, deadline: float) -> str:
    """The first failure in words, or nothing."""
    for command in step.commands:
        if failure := _run(command, out, deadline, step.variables):
            return failure
    return ""


def _run(command: tuple[str, ...], out: Any, deadline: float, variables: Mapping[str, str]) -> str:
    out.write(f"$ {' '.join(command)}\n")
    out.flush()
    begin = out.tell()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **variables},
        )  # fmt: skip
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _end(process)
        return f"{command[0]} was ended: it took longer than it may"
    except BaseException:
        _end(process)
        raise
    return "" if code == 0 else f"code {code}: {_last_words(Path(out.name), begin)}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a command with all that it started."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _last_words(log: Path, begin: int) -> str:
    lines = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines() or ["it said nothing"]
    said = [line for line in lines if not line.startswith("{")] or ["see its log"]
    return said[-1].removeprefix("tinyllava-edge: ")[:300]


def _last_json(log: Path) -> Any:
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith("{"):
            with suppress(ValueError):
                return json.loads(line)
    return None
