"""What a board gets: the core and the runtimes' packages, resolved for aarch64 and each board's Python.

    python -m tools.locks            resolves, and writes runtimes/locks/*.txt
    python -m tools.locks --check    only compares with what is written; exit code 1 where that differs

Wheels all but llama-cpp-python, which is built on the board. Needs uv, and asks PyPI.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tinyllava_edge.runtimes.deploy import GLIBC

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runtimes" / "locks"  # installed: `deploy` takes them
BOARDS = {"3.10": ("JetPack 6", GLIBC["3.10"]), "3.12": ("JetPack 7", GLIBC["3.12"])}
SOURCE = "llama-cpp-python"


def resolve(python: str, glibc: str) -> str:
    """Pins for a Python on aarch64, one a line.

    Raises:
        SystemExit: something has no wheel for it; the message is uv's.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--only-binary", ":all:", "--no-binary", SOURCE, "--python-version", python]
    command += ["--python-platform", f"aarch64-manylinux_{glibc}"]
    command += [word for extra in ("ort", "llamacpp", "packs") for word in ("--extra", extra)]
    result = subprocess.run(
        [*command, "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        sys.exit(f"Python {python} on aarch64: {' '.join(result.stderr.split())}")
    return result.stdout


def main() -> int:
    """Resolve for each board; write the locks, or compare with them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    differing = False
    for python, (board, glibc) in BOARDS.items():
        text = f"# {board}: aarch64, Python {python}; wheels, but {SOURCE}\n{resolve(python, glibc)}"
        path = FOLDER / f"aarch64-{python}.txt"
        is_same = path.exists() and path.read_text(encoding="utf-8") == text
        packages = text.count("==")
        sys.stdout.write(f"{path.name}: {packages} packages{'' if is_same else ', not as written'}\n")
        if not is_same and not check:
            path.write_text(text, encoding="utf-8")
        differing |= not is_same
    return int(differing and check)


if __name__ == "__main__":
    sys.exit(main())
