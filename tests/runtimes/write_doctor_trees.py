"""Write what `doctor` says of every tree: `python -m tests.runtimes.write_doctor_trees`."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.core.test_device import write_tree
from tests.runtimes.device_trees import TREES, Files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "results" / "doctor_trees.md"
HEAD = """# What doctor says of machines that nobody here has

Written by `python -m tests.runtimes.write_doctor_trees`; `tests/runtimes/test_doctor_trees.py` holds it to
what `tinyllava-edge doctor --root DIR` prints. The trees are files as such machines have them, made from
published logs and sources (`tests/runtimes/device_trees.py`): no such machine was there. On a machine itself
`doctor` also imports each package and asks CUDA; `usable` here says only that no file speaks against it.
"""


def doctor_output(files: Files) -> tuple[str, int]:
    """What the command prints of a tree, and its exit code; nothing of this machine is in it."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_tree(Path(folder), files)
        for path in root.glob("usr/**/bin/*"):
            path.chmod(0o755)
        result = subprocess.run(
            [sys.executable, "-m", "tinyllava_edge", "doctor", "--root", folder],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/local/bin:/usr/bin", "PYTHONPATH": str(ROOT), "HOME": folder},
        )
    assert not result.stderr, result.stderr
    return result.stdout, result.returncode


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, files in TREES.items():
        text, code = doctor_output(files)
        parts.append(f"\n## {title}\n\nExit code {code}.\n\n```\n{text.rstrip()}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
