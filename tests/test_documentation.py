"""README and the pages say of commands, stages, files and pages what the code says. No model."""

import re
from pathlib import Path

from tests.command_lines import check_line
from tests.golden import CHECKPOINT_NAMES
from tinyllava_edge.cli import COMMANDS
from tinyllava_edge.export.onnx_file import INLINE_LIMIT
from tinyllava_edge.gates import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen"),
)


def documented_command(row: str) -> str:
    """The command that a row of the table shows; a name may have two words."""
    words = row.split()
    two = " ".join(words[:2])
    return two if two in COMMANDS else words[0]


def test_the_table_has_every_command_and_no_other() -> None:
    rows = re.findall(r"^\| `tinyllava-edge ([^`]+)` \|", COMMANDS_PAGE, re.MULTILINE)
    assert {documented_command(row) for row in rows} == set(COMMANDS)


def test_readme_is_short_and_its_table_narrow() -> None:
    assert README.count("\n") <= 150
    tables = re.findall(r"^\|[-:|]+\|$", README, re.MULTILINE)
    assert tables
    assert max(table.count("|") - 1 for table in tables) <= 8


def test_every_line_from_a_name_to_a_board_is_one_that_its_command_reads() -> None:
    [section] = re.findall(r"\*\*Not run here\*\*.*?```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.replace("$NAME", "owner/name") for line in section.splitlines()]
    ours = [line for line in lines if line.startswith("tinyllava-edge ")]
    assert len(ours) >= 8
    for line in ours:
        check_line(line)


def test_the_number_of_stages_is_said_right_wherever_it_is_said() -> None:
    for name in ("docs/commands.md", "docs/measuring.md"):
        said = re.findall(r"(\w+) stages\b", (ROOT / name).read_text(encoding="utf-8").lower())
        numbers = [NUMBERS.index(word) for word in said if word in NUMBERS]
        assert numbers, name
        assert set(numbers) == {len(STAGES)}, name


def test_the_verdicts_shown_are_of_all_stages() -> None:
    for page in (README, (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")):
        shown = re.findall(r"equal to its checkpoint in (\d+) of (\d+) stages", page)
        assert set(shown) == {(str(len(STAGES)), str(len(STAGES)))}


def test_the_number_of_golden_checkpoints_is_said_right() -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert f": {NUMBERS[len(CHECKPOINT_NAMES)]} golden checkpoints" in page


def test_the_page_of_the_bundle_says_from_which_size_on_weights_lie_apart() -> None:
    page = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    assert (
        f"vision/fp32.onnx.data     its weights, where they are larger than {INLINE_LIMIT >> 20} MiB" in page
    )


def test_every_folder_of_the_tree_is_there() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where things go\n")[1]
    tree = tree.split("\n\n`")[0]
    folders, room = [], ""
    for indent, name in re.findall(r"^( {4}| {6})(\S+)/ ", tree, re.MULTILINE):
        room = name if len(indent) == 4 else room
        folders.append(name if room == name else f"{room}/{name}")
    assert len(folders) > 10
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = project.split("\npackages = [\n")[1].split("\n]\n")[0]
    rooms = re.findall(r'^    "tinyllava_edge(?:\.\w+)?\.(\w+)"', packages, re.MULTILINE)
    assert len(rooms) > 10
    assert [room for room in rooms if f" {room}/ " not in tree] == []


def test_readme_lists_every_page() -> None:
    listed = set(re.findall(r"\]\((docs/[\w/]+\.md)\)", README))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("docs/pictures/")} == listed
