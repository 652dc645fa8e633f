"""The parity/ folder of a bundle: what `export` and `verify` found, each in a file bound to the manifest.

Nothing is written into the bundle that comes with the package: its results are kept in the user's cache.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from tinyllava_edge.atomic_files import full_disk_named, write_json
from tinyllava_edge.bundle import PARITY_FOLDER, Bundle
from tinyllava_edge.cache import cache_folder
from tinyllava_edge.checkpoint.names import NANO, bundle_path
from tinyllava_edge.errors import BundleError


class _Check(BaseModel):
    metric: str
    value: float  # or "nan", "inf": JSON has no number for these


class _Stage(BaseModel):
    stage: str
    variant: str
    checks: list[_Check] = []


class _Variants(BaseModel):
    vision: list[str] = Field(min_length=1)


class _Island(BaseModel):
    nodes: list[str]
    in_attention: bool


class _Graph(BaseModel):
    islands: list[_Island] = []


class _Result(BaseModel):
    """What is read of results; each is in some of them."""

    passed: bool = False
    variants: _Variants = _Variants(vision=[""])
    stages: list[_Stage] = []
    vision: dict[str, _Graph] = {}


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


def read_parity(bundle: Bundle, name: str) -> dict[str, Any] | None:
    """What was found of this very bundle, or None.

    Raises:
        BundleError: the file is not a JSON object, or a value of this bundle's is not what it should be.
    """
    # The shipped bundle comes with what its export found.
    paths = (parity_path(bundle, name), bundle.root / PARITY_FOLDER / f"{name}.json")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(found).__name__}.")
    if found.get("manifest_sha256") != bundle.manifest_sha256:
        return None
    try:
        _Result.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise BundleError(f"{path}: {where}: {first['msg']}. Run verify again, or export.") from None
    return found
