"""This very package as a wheel, without a build tool and without a network.

It is pure Python, so a wheel is its files, its metadata and a list of both with hashes
(packaging.python.org/specifications/binary-distribution-format).
"""

import base64
import hashlib
import os
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import tinyllava_edge
from tinyllava_edge.errors import UsageError

_WHEEL = "Wheel-Version: 1.0\nGenerator: tinyllava-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_LEFT_OUT = {"__pycache__", "results"}  # recorded results stand in the checkout alone


def write_wheel(folder: Path) -> Path:
    """Write the wheel of what is running, and return its path.

    Raises:
        UsageError: the package was never installed, so its metadata are nowhere.
    """
    try:
        installed = distribution("tinyllava-edge")
    except PackageNotFoundError:
        raise UsageError(
            "tinyllava-edge runs from files that were never installed, so no wheel can be made of it. "
            "Install it: pip install --editable CHECKOUT"
        ) from None
    stem = f"tinyllava_edge-{installed.version}"
    info = f"{stem}.dist-info"
    path = folder / f"{stem}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in [*_files(), *_metadata(installed, info)]:
            wheel.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}\n")
        wheel.writestr(f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]))
    return path


def _files() -> Iterator[tuple[str, bytes]]:
    """The package's files; in a checkout its stages are links."""
    root = Path(tinyllava_edge.__file__).parent
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for name in sorted(files):
            path = Path(folder, name)
            yield f"tinyllava_edge/{path.relative_to(root).as_posix()}", path.read_bytes()


def _metadata(installed: Distribution, info: str) -> Iterator[tuple[str, bytes]]:
    # A checkout has an .egg-info beside it, which is found first there, and calls its metadata PKG-INFO.
    metadata = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""
    yield f"{info}/METADATA", metadata.encode()
    yield f"{info}/entry_points.txt", (installed.read_text("entry_points.txt") or "").encode()
    yield f"{info}/WHEEL", _WHEEL.encode()
