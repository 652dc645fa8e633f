"""Which Python packages are installed, for the Python that runs or in a tree that shows another machine.

Needs nothing but Python: `install.py` asks it before anything is installed.
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from tinyllava_edge.machine_files import HERE

# Where people and Debian put packages, an environment first: it hides the system's.
_PLACES = (
    *("home/*/*/lib/python3.*/site-packages", "root/*/lib/python3.*/site-packages"),
    *("opt/*/lib/python3.*/site-packages", "usr/local/lib/python3.*/*-packages"),
    *("usr/lib/python3.*/*-packages", "usr/lib/python3/dist-packages"),
)


def installed_version(name: str, root: Path = HERE) -> str | None:
    """A package's version as pip has it, or None where it is not installed."""
    if root == HERE:
        try:
            return version(name)
        except PackageNotFoundError:
            return None
    places = [str(folder) for folder in _package_folders(root)]
    found = next(iter(distributions(name=name, path=places)), None)
    return found.version if found else None


def is_distribution(name: str, root: Path = HERE) -> bool:
    """Whether pip knows a package of that name."""
    return bool(installed_version(name, root))


def find_in_packages(pattern: str, root: Path = HERE) -> list[Path]:
    """Files of installed packages: "llama_cpp/lib/libggml-cuda*"."""
    return sorted(path for folder in _package_folders(root) for path in folder.glob(pattern))


def read_python(root: Path = HERE) -> tuple[int, int] | None:
    """Major and minor version of the Python that packages are for; None where there is none."""
    if root == HERE:
        return sys.version_info[:2]
    folders = [str(folder) for folder in _package_folders(root)]
    folders += [str(path) for path in root.glob("usr/lib/python3.*")]
    found = re.search(r"/python(\d+)\.(\d+)", " ".join(folders))
    return (int(found[1]), int(found[2])) if found else None


def _package_folders(root: Path) -> Iterator[Path]:
    if root == HERE:
        yield from (Path(name) for name in sys.path if name and Path(name).is_dir())
        return
    for place in _PLACES:
        yield from sorted(root.glob(place))
