"""Where a result of `verify` is kept: in the bundle, or in the user's cache for the bundle in the package."""

import json
import os
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import PARITY_FOLDER, Bundle
from tinyllava_edge.embedded import is_shipped
from tinyllava_edge.output import write_json


def parity_path(bundle: Bundle, runtime: str) -> Path:
    """The file of a runtime's result; nothing is written into what comes with the package."""
    if not is_shipped(bundle.root):
        return bundle.root / PARITY_FOLDER / f"{runtime}.json"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tinyllava-edge" / PARITY_FOLDER / bundle.manifest_sha256 / f"{runtime}.json"


def write_parity(bundle: Bundle, runtime: str, result: dict[str, Any]) -> Path:
    """Write a result, bound to the manifest's hash.

    Raises:
        OSError: it cannot be written there.
    """
    path = parity_path(bundle, runtime)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"manifest_sha256": bundle.manifest_sha256, **result})
    return path


def read_parity(bundle: Bundle, runtime: str) -> dict[str, Any] | None:
    """What `verify` found of this very bundle and runtime, or None."""
    path = parity_path(bundle, runtime)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found.get("manifest_sha256") == bundle.manifest_sha256 else None
