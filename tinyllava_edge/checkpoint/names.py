"""What a user may call a checkpoint or bundle: `nano`, a path, or a checkpoint of the hub."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tinyllava_edge.cache import cache_folder
from tinyllava_edge.errors import UsageError

from .hub import (
    HUB,
    Snapshot,
    cached_snapshot,
    download_checkpoint,
    download_configs,
    download_sources,
    parse_name,
)

if TYPE_CHECKING:
    from .opened import Checkpoint

NANO = "nano"
_FOLDER = Path(__file__).parents[1] / "nano"


def checkpoint_path(name_or_path: str | Path) -> Path:
    """The directory of a checkpoint: `nano`'s is in the package, a hub's where it was downloaded."""
    if str(name_or_path) == NANO:
        return _FOLDER / "checkpoint"
    path = Path(name_or_path)
    return path if path.exists() else cached_snapshot(str(name_or_path)) or path


def fetch_checkpoint(name_or_path: str, *, allow_pickle: bool = False, weights: bool = True) -> Snapshot:
    """The same, but `owner/name[@revision]` that is no local path is downloaded: without `weights`, configs.

    Raises:
        CheckpointError: it cannot be downloaded.
    """
    if name_or_path == NANO or Path(name_or_path).exists() or parse_name(name_or_path) is None:
        return Snapshot(path=checkpoint_path(name_or_path))
    if not weights:
        return download_configs(name_or_path)
    return download_checkpoint(name_or_path, allow_pickle=allow_pickle)


def fetch_sources(sources: Path | None, checkpoint: Path) -> Path | None:
    """What `--sources` names; `hub` downloads what the checkpoint itself names, and says on stderr what.

    Raises:
        CheckpointError: nothing of it can be downloaded.
        UsageError: it is no directory.
    """
    if sources is None or str(sources) != HUB:
        check_sources(sources)
        return sources
    from tinyllava_edge.console import note  # rich, which a program that opens a bundle does not need

    folder, snapshots, problems = download_sources(checkpoint)
    for text in (*(f"sources: {snapshot.name}" for snapshot in snapshots), *problems):
        note(text)
    return folder


def named_checkpoint(
    name_or_path: str,
    *,
    sources: Path | None = None,
    template: str | None = None,
    allow_pickle: bool = False,
) -> "Checkpoint":
    """What a command is told of a checkpoint, as one value: downloaded where it is only named; `sources` too.

    Raises:
        CheckpointError: it cannot be downloaded.
        UsageError: `sources` is no directory.
    """
    from .opened import Checkpoint  # with all that reads one: not for a page of help

    place = fetch_checkpoint(name_or_path, allow_pickle=allow_pickle)
    return Checkpoint(
        place.path,
        sources=fetch_sources(sources, place.path),
        template=template,
        allow_pickle=allow_pickle,
        repository=place.repository,
        commit=place.commit,
    )


def check_sources(sources: Path | None) -> None:
    """A directory that is not there would pass for one that lacks the file that is looked for.

    Raises:
        UsageError: it is no directory.
    """
    if sources is not None and not sources.is_dir():
        raise UsageError(f"--sources {sources}: no such directory.")


def bundle_path(name_or_path: str | Path) -> Path:
    """The directory of a bundle: `nano`'s is in the package, a hub's where `run` has put it."""
    if str(name_or_path) == NANO:
        return _FOLDER / "bundle"
    path = Path(name_or_path)
    kept = None if path.exists() else kept_bundle(str(name_or_path))
    return kept if kept is not None and kept.is_dir() else path


def kept_bundle(text: str) -> Path | None:
    """Where the bundle of `owner/name[@revision]` is kept, or will be; None for any other text."""
    parsed = parse_name(text)
    if parsed is None:
        return None
    name, revision = parsed
    return cache_folder() / "bundles" / f"{name}@{quote(revision or 'main', safe='')}"


def is_shipped(path: Path) -> bool:
    """Whether a path is inside what comes with the package."""
    return path.resolve().is_relative_to(_FOLDER.resolve())
