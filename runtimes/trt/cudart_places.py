"""Where the CUDA runtime library may be on this machine."""

import importlib.util
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

# Another library than the one found, for boards where it is elsewhere.
LIBRARY_VARIABLE = "TINYLLAVA_EDGE_CUDART"
MAJORS = (13, 12)


def cudart_places() -> Iterator[str]:
    """Where libcudart may be, best first.

    Named by the user; loaded already, as by TensorRT: two in a process need not fit together; known to the
    loader; in packages; in JetPack.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        yield named
        return
    loaded = _loaded()
    yield from loaded
    known = [f"cudart64_{major}.dll" if os.name == "nt" else f"libcudart.so.{major}" for major in MAJORS]
    yield from (name for name in known if not any(Path(path).name.startswith(name) for path in loaded))
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if os.name == "nt":  # its loader looks neither in packages nor on the path
        yield from _below_windows(known, packages)
        return
    roots = sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    target = "aarch64-linux" if platform.machine() == "aarch64" else "x86_64-linux"
    places = (
        [package / folder for package in packages for folder in ("cu13/lib", "cuda_runtime/lib")],
        [root / f"targets/{target}/lib" for root in roots],
        [root / "lib64" for root in roots],
    )
    for folders in places:
        paths = [folder / f"libcudart.so.{major}" for major in MAJORS for folder in folders]
        there: dict[Path, str] = {}  # each file once, by its first name
        for path in filter(Path.exists, paths):
            there.setdefault(path.resolve(), str(path))
        yield from there.values()


def _below_windows(names: list[str], packages: list[Path]) -> Iterator[str]:
    toolkit = os.environ.get("CUDA_PATH")
    folders = [Path(toolkit) / "bin", Path(toolkit) / "bin" / "x64"] if toolkit else []
    folders += [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    for name in names:
        yield from (str(found) for package in packages for found in package.glob(f"**/{name}"))
        yield from (str(folder / name) for folder in folders if (folder / name).is_file())


def _loaded() -> tuple[str, ...]:
    """CUDA runtimes that other libraries have brought into this process; none where the system hides them."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(dict.fromkeys(re.findall(r"(/\S*libcudart\.so\S*)$", maps, re.MULTILINE)))
