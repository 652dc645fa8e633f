"""The Trainer's checkpoints of an unfinished run: sealed with their hashes, and whole or not there.

A checkpoint is written in `.saving` and renamed. One whose hashes are not those of its seal is removed, as if
never taken.
"""

import json
import shutil
from pathlib import Path

from tinyllava_edge.atomic_files import fsync, write_json
from tinyllava_edge.bundle import sha256_of_file

from .run import SAVING

_PREFIX, _SEAL = "checkpoint-", "seal.json"


def newest_whole(work: Path) -> Path | None:
    """The newest checkpoint that is whole; newer ones that are not are removed."""
    for checkpoint in reversed(_all(work)):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)  # other processes of the run remove it, too
    return None


def step_of(checkpoint: Path | None) -> int:
    """Steps that were done when it was taken."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix(_PREFIX))


def publish_checkpoint(work: Path, name: str, *, keep: int, best: str | None) -> None:
    """Seal what stands in `.saving`, give it its name, and remove all but the newest `keep` and the best."""
    directory = work / SAVING / name
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        fsync(path)
    hashes = {path.relative_to(directory).as_posix(): sha256_of_file(path) for path in files}
    write_json(directory / _SEAL, {"sha256": hashes})
    fsync(directory)
    directory.rename(work / name)
    fsync(work)
    shutil.rmtree(work / SAVING)
    for old in _all(work)[:-keep]:
        if best is None or old != Path(best):
            shutil.rmtree(old)


def _all(work: Path) -> list[Path]:
    found = [path for path in work.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def _is_whole(checkpoint: Path) -> bool:
    try:
        seal = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))["sha256"]
        return bool(seal) and all(sha256_of_file(checkpoint / name) == sha for name, sha in seal.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
