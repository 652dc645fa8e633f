"""docs/json.md has every field that commands print, and no other: real outputs of nano. CPU.

What takes minutes is held by the types that it is made of; `verify`, `explain`, `export` and `deploy` are
not here.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tinyllava_edge.cli import app
from tinyllava_edge.console import JSON_SCHEMA
from tinyllava_edge.runtimes.doctor import Report
from tinyllava_edge.runtimes.timings import Timings
from tinyllava_edge.tuned import Tuned

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", PAGE, re.MULTILINE))
DEMO = ROOT / "examples" / "demo"
PICTURE = str(sorted((DEMO / "pictures").iterdir())[0])
CHECKPOINT = str(ROOT / "tinyllava_edge" / "nano" / "checkpoint")
RESULT = str(ROOT / "benchmarks" / "results" / "nano")


def check_fields(found: Iterable[str], section: str) -> None:
    """Every field is in a section; what that has and is not always there says where it is."""
    rows = re.findall(r"^- `(\w+)`( \*\(where| \*\(since)?", SECTIONS[section], re.MULTILINE)
    names = set(found) - {"schema"}
    assert names <= {name for name, _ in rows}, section
    assert {name for name, only in rows if not only} <= names, section


@pytest.mark.parametrize(
    ("line", "section"),
    [
        (f"run nano {PICTURE} What? --logprobs 1 --max-tokens 2", "run, chat"),
        (f"ask nano What? {PICTURE}", "ask"),
        (f"ask nano What? {PICTURE} -o OUT/answers.jsonl", "ask -o FILE"),
        ("inspect nano", "inspect BUNDLE"),
        (f"inspect {CHECKPOINT}", "inspect CHECKPOINT"),
        ("inspect nano --device orin-nano-8gb", "inspect PATH --device NAME"),
        ("prune nano -o OUT/small --vision fp16 --language q8_0", "prune"),
        (f"card nano --bench {RESULT}", "card"),
        ("push nano someone/nano --dry-run", "push"),
        (f"eval nano --questions OUT/q.json --images {DEMO}", "eval"),
        (f"eval nano --check --questions OUT/q.json --images {DEMO}", "eval --check, train --check"),
        (f"bench compare {RESULT} {RESULT}", "bench compare"),
        ("train --preview --from nano --data OUT/q.json", "train --preview"),
        ("ablate OUT/grid.yaml --plan", "ablate --plan"),
        ("train --plan --from nano --rows 9 --positions 64", "train --plan"),
    ],
)
def test_a_command_prints_what_the_page_says(line: str, section: str, tmp_path: Path) -> None:
    rows = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    (tmp_path / "q.json").write_text(json.dumps(rows[:2]))
    base = {"from": "nano", "data": "q.json", "images": str(DEMO), "max_steps": 1}
    grid = {"base": base, "eval": {"questions": "q.json", "images": str(DEMO)}}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    result = CliRunner().invoke(app, [*line.replace("OUT", str(tmp_path)).split(), "--json"])
    assert result.exit_code == 0, result.output
    [printed] = [json.loads(text) for text in result.stdout.splitlines() if text.startswith("{")]
    assert printed["schema"] == JSON_SCHEMA
    check_fields(printed, section)


def test_watch_prints_what_the_page_says_and_a_summary_at_the_end(tmp_path: Path) -> None:
    from tests.runtimes.watch.videos import write_video

    video = write_video(tmp_path / "a.mp4", [Path(PICTURE)], hold=2)
    result = CliRunner().invoke(
        app, ["watch", "nano", str(video), "What?", "--every-frame", "--threads", "1", "--json"]
    )
    first, _, last = (json.loads(line) for line in result.stdout.splitlines())
    check_fields(first, "watch")
    check_fields(last, "watch, the last line")


def test_what_takes_minutes_is_as_the_page_says() -> None:
    from tinyllava_edge.train.finetune import Outcome

    check_fields((field.name for field in fields(Report)), "doctor")
    check_fields((*Tuned.model_fields, "path", "presets"), "tune")
    check_fields(("checkpoint", *(field.name for field in fields(Outcome))), "train")
    for folder, section in (("nano", "bench"), ("ablation", "ablate")):
        report = Path(RESULT).with_name(folder) / "report.json"
        check_fields(json.loads(report.read_text(encoding="utf-8")), section)
    for field in fields(Timings):
        assert f"`{field.name}`" in SECTIONS["run, chat"]


def test_the_page_says_which_schema_it_is_of() -> None:
    assert f"`schema`, a whole number, **{JSON_SCHEMA}** now" in PAGE
