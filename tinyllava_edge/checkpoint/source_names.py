"""What a name in config.json may be called under `--sources`: often it is a path of the trainer's machine."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")  # a folder of the hub's cache
_DRIVE = re.compile(r"[A-Za-z]:")


def is_plain(name: str) -> bool:
    """Whether a name is one of a repository, or a path inside a directory: nothing that leads elsewhere."""
    return bool(name) and "\\" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def names_under_sources(name: str) -> list[str]:
    """A name's own spelling, the public name inside a path, and its last part; none leads elsewhere."""
    parts = [
        part for part in re.split(r"[\\/]+", name) if part not in ("", ".") and not _DRIVE.fullmatch(part)
    ]
    found = [name] if is_plain(name) else []
    found += [hub_name(part) for part in parts if _CACHED.fullmatch(part)]
    found += ["/".join(parts[-2:]), *parts[-1:]]
    return [each for each in dict.fromkeys(found) if is_plain(each)]


def hub_name(name: str) -> str:
    """A name, or the repository whose folder of the hub's cache a path goes through."""
    match = _CACHED.search(name)
    return f"{match['owner']}/{match['name']}" if match else name


def public_name(name: str, known: Iterable[str]) -> str | None:
    """The one of some public repositories that a name means: itself, or what a path ends with."""
    repositories = list(known)
    for candidate in names_under_sources(name):
        if candidate in repositories:
            return candidate
    last = names_under_sources(name)[-1:]
    named = [repository for repository in repositories if [repository.split("/")[-1]] == last]
    return named[0] if len(named) == 1 else None


@cache
def say_taken(name: str, taken: str) -> None:
    """Say on stderr what stands in for a path that is not on this machine."""
    from tinyllava_edge.console import note  # rich, which a program that opens a bundle does not need

    note(f"config.json names {name!r}; taken for it: {taken}")
