"""A run's working directory `OUT.work` beside its output: what is asked for, the log, the snapshots.

It is there from the first step until the output is, locked by the process that works on it. A run is the same
run when its facts are, options and the source's hash, not paths, and its data (`records`).
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.atomic_files import check_apart, check_output, write_json
from tinyllava_edge.checkpoint.config import ASSEMBLED, SIDECAR_FILE
from tinyllava_edge.errors import DataError, OutputExistsError, UsageError
from tinyllava_edge.work_places import LOCK_FILE, clear_dead, empty, held, is_unused

from .written import REPORTS, checkpoint_mark

RUN_FILE = "run.json"
LEFT_OUT_FILE = "left_out.jsonl"
RECORDS_FILE, NOW_FILE = (
    "records.copy",
    "records.now.copy",
)  # the data: at first, and once mended; 2nd file: .1.copy
SAVING = ".saving"  # a folder: a checkpoint that is being written
# Of a run's directory, with what a killed process leaves, and snapshots of earlier versions.
_OF_A_RUN = re.compile(
    rf"{LOCK_FILE}|run\.json|training_log\.(jsonl|new)|(records|left_out)\.jsonl|\.run\.[\w-]+\.json"
    r"|records(\.now)?(\.\d+)?\.copy(\.new)?"
    r"|\.(records|left_out)\.[\w-]+\.jsonl|checkpoint-\d+|\.saving|reports|\.?step-\d{8}(\.tmp-\w+)?"
)
_OF_A_CHECKPOINT = {
    f".{kind}" for kind in ["pt", "pth", "bin", "json", "safetensors", "distcp", "metadata", "py", "lock"]
}


def work_directory(out: Path) -> Path:
    """The working directory of the run whose output is `out`."""
    out = Path(os.path.abspath(out))
    return out.with_name(f"{out.name}.work")


def parts_directory(out: Path) -> Path:
    """Where the checkpoint is, while the run lasts, that was assembled to start from."""
    out = Path(os.path.abspath(out))
    return out.with_name(f".{out.name}.parts")


def check_run(out: Path, *, resume: bool, force: bool, sources: Iterable[Path | None] = ()) -> None:
    """Refuse what is in the way, before any work is done.

    Raises:
        OutputExistsError: the output is there, or an unfinished run that is neither resumed nor replaced.
        UsageError: output or working directory is, holds or lies in one of the sources.
    """
    work, sources = work_directory(out), tuple(sources)
    for place in (out, work):
        check_apart(place, sources)
    if resume:
        return  # an output may be this very run's; `open_run` sees
    check_checkpoint(out, force=force)
    if not is_unused(work) and not (force and _is_run(work)):
        begin_anew = "--force to begin anew" if _is_run(work) else "remove it to begin anew"
        raise OutputExistsError(
            f"{work}: an unfinished run. Give --resume to go on with it, or {begin_anew}."
        )


def check_checkpoint(out: Path, *, force: bool) -> None:
    """Refuse what is in the place of a checkpoint."""
    check_output(out, force=force, mark=checkpoint_mark)


def read_sidecar(out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The sidecar of `out`, if that is the output of a run with these facts; else nothing."""
    sidecar = _read(out / SIDECAR_FILE)
    return sidecar if sidecar.items() >= facts.items() else {}


def open_run(out: Path, facts: Mapping[str, Any], *, resume: bool, force: bool) -> Path:
    """Within `held_run`, its directory, begun or found again; nothing else is left of an earlier attempt.

    Raises:
        OutputExistsError: see `check_run`.
        UsageError: the unfinished run is another one; the message says what differs.
    """
    if resume:
        check_checkpoint(out, force=force)
    else:
        check_run(out, resume=False, force=force)
    work = work_directory(out)
    if not resume and not is_unused(work):
        for path in work.iterdir():
            if path.name != LOCK_FILE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = _read(work / RUN_FILE)
    for name, value in facts.items():
        if found and found.get(name) != value:
            raise UsageError(
                f"{work}: the unfinished run has {name} {shown(found.get(name))}, this command {value!r}. "
                "Repeat the command with --resume added, or give --force without it to begin anew."
            )
    write_json(work / RUN_FILE, dict(facts))
    shutil.rmtree(work / SAVING, ignore_errors=True)  # of a process killed while it wrote
    return work


@contextmanager
def held_run(out: Path) -> Iterator[None]:
    """Be the only process that works on a run; what a killed one left beside is removed.

    Raises:
        UsageError: another process does.
    """
    with held(work_directory(out)):
        parts = parts_directory(out)
        if _read(parts / SIDECAR_FILE).get("recipe") == ASSEMBLED:
            shutil.rmtree(parts)
        for name in (os.path.basename(os.path.abspath(out)), parts.name):
            clear_dead(parts.parent, f".{name}.tmp-")
        yield


def remove_work(out: Path) -> None:
    """Empty what a finished run left that was killed before it had cleared up; `held_run` removes it."""
    work = work_directory(out)
    if work.is_dir() and _is_run(work):
        empty(work)


def truncate_log(path: Path, step: int) -> float:
    """Drop the lines after `step`, and one cut short by a kill; the seconds of the last line that stays.

    Raises:
        DataError: a line is damaged.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n") and read_log_line(line, path)["step"] <= step]
    new = path.with_suffix(".new")
    new.write_bytes(b"".join(kept))
    new.replace(path)
    return float(read_log_line(kept[-1], path)["seconds"]) if kept else 0.0


def read_log_line(line: bytes, path: Path) -> dict[str, Any]:
    """A line of a training log.

    Raises:
        DataError: it is not what `train` writes.
    """
    try:
        found = json.loads(line)
        numbers = all(math.isfinite(found[key]) for key in ("loss", "seconds"))
        if numbers and type(found["step"]) is int and str.isprintable(found["stage"]):
            return dict(found)
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
        pass
    raise DataError(f"{path}: {shown(line)[:60]} is no line of a training log. Begin anew with --force.")


def _is_run(work: Path) -> bool:
    """Whether all that is in it is a run's, half removed or not; only then is it ours to remove."""
    files = [path.relative_to(work) for path in work.rglob("*") if path.is_symlink() or not path.is_dir()]
    return all(
        _OF_A_RUN.fullmatch(path.parts[0])
        and (
            len(path.parts) == 1
            or path.parts[0] == REPORTS
            or path.suffix in _OF_A_CHECKPOINT
            or path.name == "latest"  # DeepSpeed's
        )
        for path in files
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
