"""Small files of the kernel; None where one cannot be read."""

import re
from pathlib import Path


def read_text(root: Path, path: str) -> str | None:
    """A small file of the kernel, without its last line feed; None where it cannot be read."""
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def find_text(root: Path, path: str, pattern: str) -> str | None:
    """The pattern's group in such a file, where `^` and `$` are a line's ends; None where it is not there."""
    found = re.search(pattern, read_text(root, path) or "", flags=re.MULTILINE)
    return found[1] if found else None
