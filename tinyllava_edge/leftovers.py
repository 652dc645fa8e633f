"""What killed processes left behind, found and removed: `doctor --clean`.

Removed is only what is ours by its name and by what is in it, and whose process has died. The rest is named
with the reason why it stays: a training that can go on, a user's replaced output, what a process works on.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.checkpoint.config import ASSEMBLED, SIDECAR_FILE
from tinyllava_edge.work_places import (
    FILE_MARK,
    LOCK_FILE,
    RANDOM,
    TEMPORARY,
    is_unused,
    locked_if_dead,
    places,
    remove,
    remove_dead,
    size_of,
)

_IN_USE = "a running process works there"
_PLACE = re.compile(rf"\..+\.tmp-{RANDOM}|\.work\.{RANDOM}")
_ASIDE = re.compile(rf"\.(.+)\.old-{RANDOM}")
_FILE = re.compile(rf"\..+\.{FILE_MARK}{RANDOM}(\.\w+)?")


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that a process left; `stays` says why it was not removed, and is empty where it was."""

    path: Path
    size_bytes: int
    stays: str = ""


def remove_leftovers(roots: Sequence[Path]) -> list[Leftover]:
    """Remove what killed processes left below directories, and in the system's one of temporary files."""
    seen: set[Path] = set()
    found: list[Leftover] = []
    for folder in places(Path(tempfile.gettempdir()), TEMPORARY):
        found.append(_cleared_place(folder))
    for root in roots:
        for path in _candidates(Path(os.path.realpath(root))):
            if path not in seen:
                seen.add(path)
                found += filter(None, [_cleared(path)])
    return found


def _candidates(root: Path) -> Iterator[Path]:
    """What may have been left, by its name; nothing inside it."""
    for folder, folders, files in os.walk(root):
        ours = [
            n
            for n in folders
            if _PLACE.fullmatch(n) or _ASIDE.fullmatch(n) or n.endswith((".work", ".parts"))
        ]
        yield from (Path(folder, name) for name in sorted(ours))
        yield from (Path(folder, name) for name in sorted(files) if _FILE.fullmatch(name))
        folders[:] = [name for name in folders if name not in ours]


def _cleared(path: Path) -> Leftover | None:
    if path.is_symlink():
        return None
    if _FILE.fullmatch(path.name):
        return _cleared_file(path)
    if aside := _ASIDE.fullmatch(path.name):
        return _of_aside(path, aside[1])
    if path.suffix == ".work" and not path.name.startswith(".work."):
        return _of_run(path)
    if path.suffix == ".parts":
        return _cleared_parts(path)
    return _cleared_place(path)


def _cleared_place(folder: Path) -> Leftover:
    size = size_of(folder)
    if remove_dead(folder):
        return Leftover(path=folder, size_bytes=size)
    if not os.path.lexists(folder / LOCK_FILE):
        why = f"holds no {LOCK_FILE}, so it is of an older version or not ours; remove it when you are sure"
    else:
        with locked_if_dead(folder / LOCK_FILE) as is_dead:
            why = "could not be removed; look at its permissions" if is_dead else _IN_USE
    return Leftover(path=folder, size_bytes=size, stays=why)


def _cleared_file(path: Path) -> Leftover:
    size = size_of(path)
    with locked_if_dead(path) as is_dead:
        if is_dead:
            remove(path)
    gone = not path.exists()
    return Leftover(path=path, size_bytes=size, stays="" if gone else _IN_USE)


def _of_aside(folder: Path, name: str) -> Leftover | None:
    if not os.path.lexists(folder / "old"):
        return _cleared_place(folder)
    target = folder.with_name(name)
    why = f"old is what {target} was before it was replaced"
    return Leftover(path=folder, size_bytes=size_of(folder), stays=f"{why}; move it back, or remove it")


def _of_run(work: Path) -> Leftover | None:
    """A training's directory: the snapshots in it are what `--resume` needs."""
    if os.path.lexists(work / LOCK_FILE) and is_unused(work):
        return _cleared_place(work)
    if not (work / "run.json").is_file():
        return None
    running = _is_held(work / LOCK_FILE)
    why = (
        _IN_USE if running else "an unfinished training: train --resume goes on with it, --force begins anew"
    )
    return Leftover(path=work, size_bytes=size_of(work), stays=why)


def _cleared_parts(folder: Path) -> Leftover | None:
    """A checkpoint that a training had assembled to start from: it makes the same one again."""
    recipe = None
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        recipe = json.loads((folder / SIDECAR_FILE).read_bytes()).get("recipe")
    if recipe != ASSEMBLED or not folder.name.startswith("."):
        return None
    size = size_of(folder)
    if _is_held(folder.with_name(f"{folder.name[1:].removesuffix('.parts')}.work") / LOCK_FILE):
        return Leftover(path=folder, size_bytes=size, stays=_IN_USE)
    remove(folder)
    return Leftover(path=folder, size_bytes=size)


def _is_held(lock: Path) -> bool:
    """Whether a lock is there, and a process holds it or may hold it."""
    with locked_if_dead(lock) as is_dead:
        return lock.exists() and not is_dead
