"""The parity/ folder of a bundle: what `export` and `verify` found, each in a file bound to the manifest.

Nothing is written into the bundle that comes with the package: its results are kept in the user's cache.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllava_edge.atomic_files import full_disk_named, write_json
from tinyllava_edge.bundle import MAX_MANIFEST_BYTES, PARITY_FOLDER, Bundle
from tinyllava_edge.cache import cache_folder
from tinyllava_edge.checkpoint.names import NANO, bundle_path
from tinyllava_edge.errors import BundleError

EXPORT = "export"  # the one result that is not `verify`'s
REMOVE = "Remove it, and measure again with `tinyllava-edge verify`."


class _Read(BaseModel):
    """What is read of a file; older ones have less of it, newer ones more."""

    model_config = ConfigDict(strict=True)


class _Island(_Read):
    nodes: list[str]
    in_attention: bool


class _Graph(_Read):
    islands: list[_Island] = []


class _Exported(_Read):
    vision: dict[str, _Graph] = {}


class _Check(_Read):
    metric: str
    value: float | Literal["inf", "-inf", "nan"]


class _Stage(_Read):
    stage: str
    variant: str
    checks: list[_Check]


class _Variants(_Read):
    vision: list[str] = Field(min_length=1)


class _Verified(_Read):
    passed: bool
    variants: _Variants | None = None
    stages: list[_Stage] = []


def parity_path(bundle: Bundle, name: str) -> Path:
    """Where a result is written: "export", or the runtime that `verify` ran."""
    if bundle.root.resolve() != bundle_path(NANO).resolve():
        return bundle.root / PARITY_FOLDER / f"{name}.json"
    return cache_folder() / PARITY_FOLDER / bundle.manifest_sha256 / f"{name}.json"


def write_parity(bundle: Bundle, name: str, result: dict[str, Any]) -> Path:
    """Write a result, bound to the manifest's hash.

    Raises:
        DiskFullError: there is no room.
        OSError: it cannot be written there.
    """
    path = parity_path(bundle, name)
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"manifest_sha256": bundle.manifest_sha256, **result})
    return path


def found_path(bundle: Bundle, name: str) -> Path | None:
    """Where a result lies; None where there is none."""
    # The shipped bundle comes with what its export found.
    paths = (parity_path(bundle, name), bundle.root / PARITY_FOLDER / f"{name}.json")
    return next((path for path in paths if path.is_file()), None)


def read_parity(bundle: Bundle, name: str) -> dict[str, Any] | None:
    """What was found of this very bundle, or None.

    Raises:
        BundleError: the file is not a JSON object, or what is read of it has another type.
    """
    path = found_path(bundle, name)
    if path is None:
        return None
    with path.open("rb") as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes. {REMOVE}")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}). {REMOVE}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(found).__name__}. {REMOVE}")
    if found.get("manifest_sha256") != bundle.manifest_sha256:
        return None
    try:
        (_Exported if name == EXPORT else _Verified).model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where[:200]}: {first['msg']}. {REMOVE}") from None
    return found
