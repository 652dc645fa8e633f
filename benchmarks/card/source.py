"""What a bundle's checkpoint says of its parts and its licence, where it is at hand. Nothing is guessed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.hub import cached_snapshot
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import TinyLlavaEdgeError, UsageError
from tinyllava_edge.process import detail
from tinyllava_edge.user_files import read_user_text

UNKNOWN = "unknown"  # the hub's own word for a licence that nobody states
_MOST_README = 4 << 20
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENCE = re.compile(
    r"""^license:[ \t]*(["']?)([A-Za-z0-9][A-Za-z0-9.+-]{0,60})\1[ \t]*(?:#.*)?\r?$""", re.MULTILINE
)
_PARTS = {  # part -> keys of a config.json in TinyLLaVA Factory's form
    "vision_tower": ("vision_model_name_or_path", "vision_model_name_or_path2"),
    "language_model": ("llm_model_name_or_path",),
}
_NOTICE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|ATTRIBUTION)([.-][\w.-]{1,30})?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint that a bundle came from.

    Attributes:
        path: its directory.
        licence: as its README.md's metadata says; "" where that says none.
        names: part -> what config.json calls its source; without those that it names none for.
        licences: that name -> licence, where the repository is in the hub's cache and says one.
        notices: files about rights.
    """

    path: Path
    licence: str
    names: dict[str, str]
    licences: dict[str, str]
    notices: Sequence[Path]


def find_origin(bundle: Bundle, given: str | None = None) -> Origin | None:
    """The checkpoint that a bundle came from, by its hash.

    Args:
        bundle: says its hash, and where it was.
        given: a directory or name, in the place of what the bundle says; the hub is not asked.

    Raises:
        UsageError: `given` is another checkpoint.
        CheckpointError: `given` cannot be read.
    """
    source = bundle.manifest.source
    if given is not None:
        checkpoint = Checkpoint(checkpoint_path(given))
        if checkpoint.sha256 != source.checkpoint_sha256:
            raise UsageError(
                f"--checkpoint {given}: has the sha256 {checkpoint.sha256[:12]}..., the bundle came from "
                f"{source.checkpoint_sha256[:12]}.... Give that one, or leave the option out."
            )
        return _origin(checkpoint)
    of_hub = f"{source.repository}@{source.revision}" if source.repository and source.revision else ""
    for name in filter(None, (source.name, of_hub)):
        try:
            checkpoint = Checkpoint(checkpoint_path(name))
            detail(f"{checkpoint}: its hash tells whether the bundle came from it")
            if checkpoint.sha256 == source.checkpoint_sha256:
                return _origin(checkpoint)
        except (TinyLlavaEdgeError, OSError, ValueError):
            continue
    return None


def _origin(checkpoint: Checkpoint) -> Origin:
    config = checkpoint.factory_config
    names, licences = {}, {}
    for part, keys in _PARTS.items():
        found = [str(config[key]) for key in keys if isinstance(config.get(key), str) and config[key]]
        if found:
            name = names[part] = ", ".join(found)
            folders = map(cached_snapshot, found)
            known = [licence_of(folder) if folder is not None else "" for folder in folders]
            licences[name] = ", ".join(each or UNKNOWN for each in known) if any(known) else ""
    files = sorted(path for path in checkpoint.path.iterdir() if path.is_file())
    return Origin(
        path=checkpoint.path,
        licence=licence_of(checkpoint.path),
        names=names,
        licences={name: licence for name, licence in licences.items() if licence},
        notices=[path for path in files if _NOTICE.fullmatch(path.name) and _is_its_own(path)],
    )


def _is_its_own(path: Path) -> bool:
    """Whether a checkpoint's file is in its folder or a blob of the hub's cache, and no link elsewhere."""
    folder, real = path.parent.resolve(), path.resolve()
    blobs = folder.parents[1] / "blobs" if len(folder.parents) > 1 else folder
    return real.is_relative_to(folder) or real.is_relative_to(blobs)


def licence_of(folder: Path) -> str:
    """The licence in the metadata of a model's README.md, as the hub's word for it; "" where it says none."""
    try:
        front = _FRONT.match(read_user_text(folder / "README.md", most=_MOST_README))
    except TinyLlavaEdgeError:
        return ""
    found = _LICENCE.search(front[1]) if front else None
    return found[2] if found else ""
