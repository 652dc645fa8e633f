"""Small files of the kernel and of packages, below the root of this machine or of a tree that shows another.

What cannot be read is empty, and what is not found None.
"""

import re
from pathlib import Path

HERE = Path("/")


def read_file(path: Path) -> str:
    """A small file's text; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_text(path: Path) -> str | None:
    """The same without blanks around it; None where there is nothing."""
    return read_file(path).strip() or None


def read_number(path: Path) -> int | None:
    """A file's number, as the kernel writes frequencies and degrees; None where there is none."""
    text = read_file(path).strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def read_meminfo(root: Path, name: str) -> int | None:
    """Bytes of a line of proc_meminfo(5); None where the kernel does not say."""
    kib = first_match(rf"(?m)^{name}:\s*(\d+) kB", read_file(root / "proc/meminfo"))
    return int(kib) << 10 if kib else None


def field_of(text: str, name: str) -> str:
    """First value of `name : value` in a file of /proc."""
    return (first_match(rf"(?m)^{re.escape(name)}\s*:\s*(.*)$", text) or "").strip()


def first_match(pattern: str, text: str) -> str | None:
    """What the pattern's first group finds."""
    found = re.search(pattern, text)
    return found[1] if found else None


def shown(root: Path, path: Path) -> str:
    """A path as it is called where the root is the root."""
    return str(path) if root == HERE else f"/{path.relative_to(root).as_posix()}"
