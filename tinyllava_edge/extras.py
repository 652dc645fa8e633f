"""The line that installs what one of our extras names, from wherever it is typed.

No index has `tinyllava-edge[ort]`, so a line names the packages themselves, as the installed metadata do.
"""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from tinyllava_edge.install import llamacpp_line, pip
from tinyllava_edge.installed import is_distribution, read_python
from tinyllava_edge.jetson import read_jetson
from tinyllava_edge.machine_files import HERE

_JETPACK6_INDEX = "https://pypi.jetson-ai-lab.io/jp6/cu126"  # PyPI has no onnxruntime-gpu for it
_APT_TENSORRT = (
    "sudo apt-get install -y python3-libnvinfer, in an environment made with --system-site-packages"
)


def install_line(extra: str, *, again: bool = False, root: Path = HERE) -> str:
    """The command that installs an extra's packages on this machine.

    Args:
        extra: a name of `[project.optional-dependencies]`.
        again: they are installed and do not load.
        root: of the tree that shows what the machine is, and what is installed there.
    """
    jetson = read_jetson(root)
    if jetson is not None and extra == "tensorrt":
        return _APT_TENSORRT  # NVIDIA's wheels are for other CUDA libraries than the board's
    wanted = list(dict.fromkeys(requirements(extra)))
    if not wanted:  # run from a checkout that was never installed
        return f"{pip('install', root)} --editable {shlex.quote(f'{Path(__file__).parents[1]}[{extra}]')}"
    lines = []
    if extra == "gpu" and is_distribution("onnxruntime", root):  # the two overwrite each other's files
        lines.append(f"{pip('uninstall', root)} -y onnxruntime onnxruntime-gpu")
    if is_distribution("onnxruntime-gpu", root) and extra != "ort":
        wanted = [each for each in wanted if _name(each) != "onnxruntime"]
    others = [each for each in wanted if _name(each) != "llama-cpp-python"]
    if others:
        options = ["--force-reinstall", "--no-deps"] if again else []
        if extra == "gpu" and jetson is not None and (read_python(root) or (3, 10)) < (3, 12):
            options += ["--index-url", _JETPACK6_INDEX]
        lines.append(" ".join([pip("install", root), *options, *map(shlex.quote, others)]))
    if len(others) < len(wanted) and (
        again or extra == "llamacpp" or not is_distribution("llama-cpp-python", root)
    ):
        lines.append(llamacpp_line(root))
    return " && ".join(lines)


def requirements(extra: str) -> Iterator[str]:
    """What an extra asks for ("onnxruntime>=1.20"), other extras of ours followed; nothing if unknown."""
    try:
        lines = requires("tinyllava-edge") or []
    except PackageNotFoundError:
        return
    for line in lines:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"extra == ['\"]{extra}['\"]", marker):
            continue
        if _name(requirement) != "tinyllava-edge":
            yield requirement.strip()
            continue
        for inner in requirement.partition("[")[2].rstrip("] ").split(","):
            yield from requirements(inner.strip())


def _name(requirement: str) -> str:
    """A requirement's package, as PyPI spells it."""
    return re.split(r"[\s<>=!~\[;]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")
