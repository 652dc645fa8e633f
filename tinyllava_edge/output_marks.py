"""What may become an output: what a place holds now, and what a command reads, decide it."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tinyllava_edge.errors import OutputExistsError, TinyLlavaEdgeError, UsageError

# Why an existing output may not be replaced, "" where this program wrote it; may raise what reading raises.
Mark = Callable[[Path], str]


def no_mark(target: Path) -> str:
    """Of an output that is never replaced."""
    return "is no output of this command"


def check_output(
    target: Path, *, force: bool, mark: Mark = no_mark, sources: Iterable[Path | None] = ()
) -> None:
    """Refuse an output before any work is done.

    An empty directory may be replaced, and a link, which is then no link any more: what it leads to stays.

    Args:
        target: what is to be written.
        force: replace what is there, if it is this program's own.
        mark: tells that.
        sources: what the command reads, as in `check_apart`.

    Raises:
        OutputExistsError: `target` exists, and `force` is false or it is something else.
        UsageError: as `check_apart`.
    """
    check_apart(target, sources)
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputExistsError(f"{target}: exists already. Give --force to replace it.")
    if target.is_symlink() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        fault = mark(target)
    except (OSError, ValueError, LookupError, TypeError, TinyLlavaEdgeError):  # whatever it is, not ours
        fault = no_mark(target)
    if fault:
        raise OutputExistsError(
            f"{target}: {fault}. --force replaces only what this command wrote: remove it yourself, or "
            "choose another name."
        )


def check_apart(target: Path, sources: Iterable[Path | None]) -> None:
    """Refuse an output that is, holds or lies in what a command reads; links and mounts are seen through.

    Args:
        target: the output.
        sources: files and directories; None and what is not there are passed over.

    Raises:
        UsageError: it does; the message names both.
    """
    place = settled(target)
    own, *above = _identities(place)
    around = {own, *above, *_identities(place.parent)} - {None}
    for source in sources:
        if source is None or not os.path.exists(source):
            continue
        identity, *folders = _identities(source)
        if identity in around:
            relation = "is" if identity == own else "lies in"
        elif own is not None and (own in folders or any(own in _identities(p) for p in _links(source))):
            relation = "holds"
        else:
            continue
        raise UsageError(f"{target}: {relation} {source}, which this command reads. Choose another place.")


def pictures_read(images: Path | None, data: Path | None) -> Path | None:
    """A folder of pictures as a source; not the one that the data file is in, where outputs go too."""
    if images and data and os.path.realpath(images) == os.path.realpath(data.parent):
        return None
    return images


def foreign_file(root: Path, is_known: Callable[[str], bool]) -> str:
    """In a mark: names the first file or link below `root` whose relative name is not known, or is ""."""
    for folder, folders, files in os.walk(root, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted((*files, *links)):
            relative = Path(folder, name).relative_to(root).as_posix()
            if not is_known(relative):
                return f"holds {relative}, which this command did not write"
    return ""


def settled(path: Path) -> Path:
    """The path of a name as the system finds it; a link in its last place stays one."""
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)


def _identities(path: Path) -> list[tuple[int, int] | None]:
    """Device and inode of what a path leads to and of each directory above; None where nothing is."""
    found: list[tuple[int, int] | None] = []
    resolved = Path(os.path.realpath(path))
    for place in (resolved, *resolved.parents):
        try:
            status = place.stat()
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found


def _links(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        yield from (path for name in (*folders, *files) if (path := Path(folder, name)).is_symlink())


def _raise(error: OSError) -> None:
    raise error
