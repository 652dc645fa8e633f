"""docs/add_a_family.md: what it shows is the code, and its example needed nothing that it does not name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")


def shown(part: str) -> str:
    block = PAGE.split(f"<!-- {part}: begin -->\n```python\n")[1]
    return block.split(f"```\n<!-- {part}: end -->")[0]


def test_the_page_shows_the_entry_and_the_file_as_they_are() -> None:
    families = (ROOT / "tinyllava_edge" / "checkpoint" / "families.py").read_text(encoding="utf-8")
    assert shown("entry") in families.split("\nFAMILIES = {\n")[1]
    assert shown("file") == (ROOT / "export" / "gguf_arch" / "qwen3.py").read_text(encoding="utf-8")


def test_no_other_source_file_names_qwen3() -> None:
    folders = ("tinyllava_edge", "export", "runtimes", "benchmarks", "train")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_symlink() and "qwen3" in path.read_text(encoding="utf-8").lower()
    }
    own = {
        "tinyllava_edge/checkpoint/families.py",
        "export/gguf_arch/__init__.py",
        "export/gguf_arch/qwen3.py",
    }
    assert found == own
