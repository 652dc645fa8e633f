"""One interrupted run after the other: the n-th operation on the disk fails or kills, and what holds then.

The shim must be preloaded (`with_shim`), so that it counts all that this process and its forks do.
"""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.cases import CASES, OUT, Case, fingerprint, fresh, perform

MODES = {"kill": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
_NEVER = 1 << 40


def with_shim(folder: Path) -> dict[str, str]:
    """Compile the shim; returns the environment of a process that has it.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}


@dataclass
class Row:
    """What became of a case's runs.

    Attributes:
        operations: on the disk, of a run that nothing interrupts.
        faults: what does not hold, each with the operation.
        left: operations behind which the next run did not clear everything that was left behind.
    """

    case: str
    before: str
    mode: str
    operations: int = 0
    runs: int = 0
    ended: dict[str, int] = field(default_factory=dict)  # exit code or signal -> runs
    older: int = 0  # runs after which it was as before
    newer: int = 0  # and after which the new output was there
    faults: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def strike_all(name: str, before: str, mode: str, scratch: Path, source: Path, *, every: int) -> Row:
    """Interrupt every `every`-th operation of a case, until the run ends as if there were no fault."""
    case, row = CASES[name], Row(name, before, mode)
    place, older = scratch / "place", None
    if before == "old":
        fresh(place, None)
        code, said, _, _ = _run(case, source, place, _NEVER, mode)
        assert code == 0, said
        older = Path(shutil.move(place / OUT, scratch / "older"))
    fresh(place, older)
    code, said, row.operations, _ = _run(case, source, place, _NEVER, mode)
    if code != 0:
        row.faults.append(f"without a fault: ended with {code}: {said[-600:]}")
        return row
    for number in range(1, row.operations + 1, every):
        fresh(place, older)
        _strike(case, row, source, place, number, mode)
    shutil.rmtree(place)
    if older is not None:
        shutil.rmtree(older)
    return row


def _strike(case: Case, row: Row, source: Path, place: Path, number: int, mode: str) -> None:
    was = fingerprint(place / OUT)
    code, said, _, operation = _run(case, source, place, number, mode)
    if not operation:  # this run had fewer: it was not interrupted
        return
    row.runs += 1
    ended = signal.Signals(-code).name if code < 0 else str(code)
    row.ended[ended] = row.ended.get(ended, 0) + 1
    now = fingerprint(place / OUT)
    row.older += now == was
    row.newer += now != was
    found = list(_faults_of_words(ended, said, mode, (place, source)))
    if now != was and (reason := _not_whole(case, place)):
        found.append(f"half an output: {reason}")
    others = _others(place)
    allowed = [name for name in others if mode == "kill" and name.startswith(f".{OUT}.")]
    if wrong := set(others) - {*case.beside, *allowed}:
        found.append(f"left {', '.join(sorted(wrong))}")
    if now != was or others:  # else it is as before, so the next run is as the first
        found += _faults_of_next_run(case, source, place, mode)
        if rest := _others(place):
            row.left.append(f"{number} ({operation}): {', '.join(rest)}")
    row.faults += [f"{number} ({operation}): {text}" for text in found]


def _faults_of_words(ended: str, said: str, mode: str, places: tuple[Path, Path]) -> Iterator[str]:
    """An error is code 2 with one line that has a path, and bytes where none are left."""
    if ended not in (("SIGKILL",) if mode == "kill" else ("0", "2")):
        yield f"ended with {ended}: {said[-600:]}"
    if ended != "2":
        return
    lines = [line for line in said.splitlines() if line.startswith("tinyllava-edge: ")]
    if len(lines) != 1 or not any(str(path) in lines[0] for path in places):
        yield f"names no path, or not on one line: {said[-300:]}"
    elif mode == "ENOSPC" and "bytes" not in lines[0]:
        yield f"names no bytes: {lines[0]}"


def _faults_of_next_run(case: Case, source: Path, place: Path, mode: str) -> Iterator[str]:
    code, said, _, _ = _run(case, source, place, _NEVER, mode, again=True)
    if code != 0:
        yield f"the next run ended with {code}: {said[-300:]}"
    elif reason := _not_whole(case, place):
        yield f"the next run left {reason}"


def _others(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name != OUT)


def _not_whole(case: Case, place: Path) -> str:
    try:
        case.whole(place / OUT)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _run(
    case: Case, source: Path, place: Path, number: int, mode: str, *, again: bool = False
) -> tuple[int, str, int, str]:
    """Exit code, what was said, operations, and the one that was struck ("" for none), of a run in a fork."""
    said, log = place.parent / "said", place.parent / "struck"
    child = os.fork()
    if child == 0:
        for path, handles in ((said, (1, 2)), (log, (3,))):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            for handle in handles:
                os.dup2(opened, handle)
        shim = ctypes.CDLL(None)
        shim.fault_count.restype = ctypes.c_long
        os.environ["XDG_CACHE_HOME"] = str(place.parent / "cache")
        shim.fault_arm(ctypes.c_long(number), MODES[mode], os.fsencode(place), 3)
        words = case.again if again and case.again else case.run
        code = perform(words, source, place, case.force)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(3, f"count {shim.fault_count()}\n".encode())
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = log.read_text().splitlines()
    counts = [int(line.split()[1]) for line in lines if line.startswith("count ")]
    struck = [line for line in lines if not line.startswith("count ")]
    return code, said.read_text(errors="replace"), counts[0] if counts else 0, struck[0] if struck else ""
