"""README and the pages say of commands, stages, files and pages what the code says. No model."""

import re
from pathlib import Path

from tinyllava_edge.cli import COMMANDS
from tinyllava_edge.export.onnx_file import INLINE_LIMIT
from tinyllava_edge.gates import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen"),
)


def documented_command(row: str) -> str:
    """The command that a row of README's table shows; a name may have two words."""
    words = row.split()
    two = " ".join(words[:2])
    return two if two in COMMANDS else words[0]


def test_readmes_table_has_every_command_and_no_other() -> None:
    shown = {
        documented_command(row)
        for row in re.findall(r"^\| `tinyllava-edge ([^`]+)` \|", README, re.MULTILINE)
    }
    assert shown == set(COMMANDS)


def test_the_number_of_stages_is_said_right_wherever_it_is_said() -> None:
    for name in ("README.md", "docs/measuring.md"):
        said = re.findall(r"(\w+) stages\b", (ROOT / name).read_text(encoding="utf-8").lower())
        numbers = [NUMBERS.index(word) for word in said if word in NUMBERS]
        assert numbers, name
        assert set(numbers) == {len(STAGES)}, name


def test_the_page_of_the_bundle_says_from_which_size_on_weights_lie_apart() -> None:
    page = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    assert (
        f"vision/fp32.onnx.data     its weights, where they are larger than {INLINE_LIMIT >> 20} MiB" in page
    )


def test_every_folder_of_readmes_tree_is_there() -> None:
    tree = README.split("## Where things are\n")[1].split("Pages:")[0]
    folders, room = [], ""
    for indent, name in re.findall(r"^( {4}| {6})(\S+)/ ", tree, re.MULTILINE):
        room = name if len(indent) == 4 else room
        folders.append(name if room == name else f"{room}/{name}")
    assert len(folders) > 10
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_readme_lists_every_page() -> None:
    listed = set(re.findall(r"\]\((docs/[\w/]+\.md)\)", README))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("docs/pictures/")} == listed
