"""Files that only others' machines run: the public CI's and the notebook. They are read here, and not run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_lines import ROOT, check_line

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES_CONFIG = ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"
NOTEBOOK = ROOT / "examples" / "notebooks" / "t4.ipynb"
JETSON = ROOT / "docs" / "jetson.md"
STEPS = (
    *(
        "1 | flash JetPack",
        "sudo nvpmodel -m",
        "sudo apt install",
        "python3 -m venv",
        "tinyllava_edge.install",
    ),
    *("tinyllava-edge doctor\n", "tinyllava-edge export", "inspect BUNDLE --device", "tinyllava-edge deploy"),
    *("scp -r", "tinyllava-edge build BUNDLE  ", "tinyllava-edge verify", "tinyllava-edge run BUNDLE"),
    *("tinyllava-edge bench", "\nmake hardware-check"),
)
POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog", "readline"}


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def run_lines(path: Path) -> list[str]:
    return [line for step in steps(path) for line in step.get("run", "").splitlines()]


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def notebook_lines() -> list[str]:
    calls = [node for cell in cells() for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    steps = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "step"]
    return [ast.literal_eval(call.args[1]) for call in steps]


def test_every_line_of_the_board_is_one_that_its_command_reads() -> None:
    blocks = "\n".join(JETSON.read_text(encoding="utf-8").split("```")[1::2])
    ours = [
        line for line in blocks.splitlines() if re.match(r"(tinyllava-edge|make|\S*=?\S* ?python) ", line)
    ]
    assert len(ours) >= 10
    for line in ours:
        check_line(line)


def test_the_page_of_the_board_is_in_the_order_of_a_persons_steps() -> None:
    text = JETSON.read_text(encoding="utf-8")
    places = [text.index(word) for word in STEPS]
    assert places == sorted(places)
    rows = re.findall(r"^\| \d \|.*\|$", text, re.MULTILINE)
    assert len(rows) == 8
    assert all("not measured" in row for row in rows), "no step has been timed on a board"


def test_there_is_one_for_linux_and_one_for_windows() -> None:
    assert [path.name for path in WORKFLOWS] == ["linux.yml", "windows.yml"]
    runners = {
        name: name in path.read_text() for path in WORKFLOWS for name in ("ubuntu-24.04-arm", "windows")
    }
    assert runners["windows"]
    assert "ubuntu-24.04-arm" in WORKFLOWS[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_one_by_githubs_schema(path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_issue_templates_are_forms_by_githubs_schema_and_ask_for_doctor() -> None:
    pytest.importorskip("check_jsonschema")
    forms = sorted(set((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) - {TEMPLATES_CONFIG})
    assert [path.stem for path in forms] == ["board_report", "bug", "export_difference"]
    for schema, files in (("issue-forms", forms), ("issue-config", [TEMPLATES_CONFIG])):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{schema}"]
        result = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout
    lines = [line for path in forms for line in re.findall(r"tinyllava-edge [\w \"./-]+", path.read_text())]
    assert len(lines) >= 5
    for line in lines:
        check_line(line.rstrip(". "))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_step_is_a_command_of_this_repository(path: Path) -> None:
    lines = run_lines(path)
    assert len(lines) >= 8
    for line in lines:
        check_line(line)
        assert line.split()[0] in ("make", "python"), "nothing hidden: what a developer runs"


def test_windows_needs_no_make_and_no_tests_of_posix() -> None:
    lines = run_lines(WORKFLOWS[1])
    assert not [line for line in lines if line.startswith("make")]
    [tests] = [line for line in lines if "pytest" in line]
    to_read = [
        ROOT / "tests" / "conftest.py",
        *(ROOT / word for word in tests.split() if word.endswith(".py")),
    ]
    seen: set[Path] = set()
    while to_read:
        path = to_read.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        assert not POSIX & set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)), path
        assert not re.search(r"os\.(fork|geteuid|getuid|mkfifo|kill)\b|signal\.SIG(KILL|HUP|ALRM)", text), (
            path
        )
        to_read += [path.with_name("conftest.py")] if path.with_name("conftest.py").exists() else []
        for module in re.findall(r"^from (tests[\w.]*) import", text, re.MULTILINE):
            named = ROOT / f"{module.replace('.', '/')}.py"
            to_read += [named] if named.exists() else []
    assert len(seen) > 8


def test_the_version_of_the_wheel_is_the_projects() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    wheels = {
        name for path in WORKFLOWS for name in re.findall(r"tinyllava_edge-[\w.-]+\.whl", path.read_text())
    }
    assert wheels == {f"tinyllava_edge-{version[1]}-py3-none-any.whl"}


def test_the_notebook_is_one() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    outputs = [cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
    assert not any(outputs), "nobody has run it, and it says so"


def test_every_line_of_the_notebook_is_one_that_its_command_reads() -> None:
    lines = notebook_lines()
    assert len(lines) >= 12
    for line in lines:
        check_line(line)
    named = {word for line in lines for word in line.split()}
    assert {"train", "export", "build", "verify", "bench", "tests/device"} <= named
    assert "bf16" not in " ".join(lines), "compute capability 7.5 has none"


def test_the_notebooks_training_has_twenty_steps() -> None:
    [line] = [line for line in notebook_lines() if " train " in line]
    size = re.search(r"--batch-size (\d+)", line)
    records = re.search(r"range\((\d+)\)", "\n".join(cells()))
    assert size
    assert records
    assert int(records[1]) / int(size[1]) == 20


def test_the_notebook_keeps_what_every_step_said_in_one_file(tmp_path: Path) -> None:
    """Its own cells, with `true` and `false` for the steps; the report is made although one fails."""
    first, last = cells()[1], cells()[-1]
    code = "\n".join(
        [
            "import os, subprocess",
            "from pathlib import Path",
            first,
            'step("a", "echo said")',
            "step('b', 'false')",
            last,
        ]
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "report.zip").is_file()
    summary = json.loads((tmp_path / "t4-report" / "summary.json").read_text())
    assert [one["exit_code"] for one in summary] == [0, 1]
    assert (tmp_path / "t4-report" / "00-a.txt").read_text() == "said\n"
