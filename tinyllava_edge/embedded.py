"""`nano`: the small model in the package. The name stands wherever a checkpoint or bundle is taken."""

from pathlib import Path

NANO = "nano"
_FOLDER = Path(__file__).parent / "nano"


def checkpoint_path(name_or_path: str | Path) -> Path:
    """The directory of a checkpoint; `nano` is the one that comes with the package."""
    return _FOLDER / "checkpoint" if str(name_or_path) == NANO else Path(name_or_path)


def bundle_path(name_or_path: str | Path) -> Path:
    """The directory of a bundle; `nano` is the one that comes with the package."""
    return _FOLDER / "bundle" if str(name_or_path) == NANO else Path(name_or_path)


def is_shipped(path: Path) -> bool:
    """Whether a path is inside what comes with the package."""
    return path.resolve().is_relative_to(_FOLDER.resolve())
