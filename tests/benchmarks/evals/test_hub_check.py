"""`hub-check` on a directory in the place of the hub, laid out as released repositories are."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.benchmarks.evals.test_public_sets import LABELS, write_pope
from tests.golden import golden_checkpoint, shared_fixtures
from tinyllava_edge.benchmarks.evals.hub_released import (
    FP16_WITHIN,
    Q4_WITHIN,
    REGISTERED,
    RELEASED,
    Released,
    judged,
    page_lines,
)
from tinyllava_edge.benchmarks.evals.hub_report import markdown_lines, report_mark
from tinyllava_edge.cli import app

RELEASE = "jiajunlong/TinyLLaVA-0.89B"  # which is an OpenELM with SigLIP, as the golden checkpoint is
OTHER = "Zhang199/TinyLLaVA-Qwen2-0.5B-SigLIP"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two golden checkpoints under released names, with remote code that would leave a file behind."""
    root = tmp_path_factory.mktemp("hub")
    for repository, golden in (
        (RELEASE, "openelm-siglip-mlp2x-last-fp16"),
        (OTHER, "qwen2-siglip-mlp2x-bf16-sharded"),
    ):
        shutil.copytree(golden_checkpoint(golden) / "model", root / repository)
    folder = root / RELEASE
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling_tinyllava_elm.M"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration.py", "modeling_tinyllava_elm.py"):
        (folder / name).write_text(f"open({str(root / 'code-was-run')!r}, 'w')\n")
    (root / OTHER / "model-00002-of-00002.safetensors").unlink()
    return root


@pytest.fixture
def eval_data(tmp_path: Path) -> Path:
    folder = write_pope(tmp_path / "data" / "pope", LABELS) / "val2014"
    folder.mkdir()
    for index in range(4):
        shutil.copy(shared_fixtures() / "images" / "small_31x17.png", folder / f"{index}.jpg")
    return tmp_path / "data"


@pytest.mark.long
def test_one_report_has_the_whole_and_the_broken_one_and_a_killed_one_goes_on(
    hub: Path, eval_data: Path, tmp_path: Path
) -> None:
    report_folder = tmp_path / "report"
    arguments = ["hub-check", "-o", str(report_folder), "--hub-root", str(hub), "--language", "f16"]
    arguments += ["--checkpoints", f"{RELEASE},{OTHER}", "--sources", str(shared_fixtures() / "sources")]
    arguments += ["--eval-data", str(eval_data), "--keep-bundles"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output  # for the broken one
    report = json.loads((report_folder / "report.json").read_text())
    whole, broken = report["checkpoints"]
    assert (whole["error"], report["complete"]) == ("", True)
    assert whole["verify"]["passed"], whole["verify"]["verdict"]
    pope = whole["scores"]["pope"]
    assert (pope["asked"], pope["of"], pope["as_published"]) == (8, 8, False)
    [first] = pope["judged"]
    assert (first["published"], first["difference"]) == (85.4, pytest.approx(pope["score"] - 85.4))
    assert first["verdict"] == "another version of the set"
    assert "model-00002-of-00002.safetensors" in broken["error"]
    assert not (hub / "code-was-run").exists()
    with tarfile.open(tmp_path / "report.tar.gz") as packed:
        assert "report/report.md" in packed.getnames()
    table = (report_folder / "report.md").read_text()
    assert f"| pope | fp16 + f16 | {pope['score']:.1f} | 85.4 | {first['difference']:+.1f} | 0.3 |" in table
    assert list(markdown_lines(report)) == table.splitlines()
    assert report_mark(report_folder) == ""

    # As a kill after verify leaves it: bundle and answers are there, the score and the report are not.
    del whole["scores"], report["checkpoints"]
    name = RELEASE.replace("/", "--")
    (report_folder / f"{name}.json").write_text(json.dumps(whole))
    (report_folder / "report.json").write_text(json.dumps({**report, "complete": False, "checkpoints": []}))
    exported = (report_folder / "bundles" / name / "manifest.json").stat().st_mtime_ns
    (tmp_path / "report.tar.gz").unlink()
    with_limit = CliRunner().invoke(app, [*arguments, "--resume", "--limit", "1"])
    assert "was begun with something else: limit was 0, is 1" in str(with_limit.exception)
    one = [RELEASE if text == f"{RELEASE},{OTHER}" else text for text in arguments]
    assert CliRunner().invoke(app, [*one, "--resume"]).exit_code == 0
    again = json.loads((report_folder / "report.json").read_text())["checkpoints"][0]
    assert again["scores"]["pope"]["variants"] == pope["variants"]
    assert again["verify"] == whole["verify"]
    assert (report_folder / "bundles" / name / "manifest.json").stat().st_mtime_ns == exported
    ended = CliRunner().invoke(app, [*arguments, "--resume"])
    assert "complete: nothing to resume" in str(ended.exception)


def variant(name: str, score: float, **more: object) -> dict[str, object]:
    vision, language = name.split(" + ")
    about = {"name": name, "vision": vision, "language": language, "score": score, "subset": False}
    return {**about, **more}


def test_figures_are_held_against_the_bounds() -> None:
    released = Released(repository="a/b", pope=86.6)
    paired = {"difference": -0.008, "difference_ci95": [-0.012, -0.004]}
    q4 = variant("fp16 + q4_k_m", 85.9, against_first=paired)
    worse = {"difference": -0.011, "difference_ci95": [-0.02, -0.002]}
    first = variant("fp16 + f16", 86.35)
    found = {
        "as_published": True,
        "variants": [first, q4, variant("fp16 + q4_0", 85.2, against_first=worse)],
    }
    rows = list(judged("pope", released, found))
    assert [row["verdict"] for row in rows] == ["within", "within", "outside"]
    assert [row["difference"] for row in rows] == pytest.approx([-0.25, -0.8, -1.1])
    assert rows[1]["ci95"] == pytest.approx([-1.2, -0.4])
    found["variants"] = [variant("fp16 + f16", 86.25)]
    assert next(judged("pope", released, found))["verdict"] == "outside"
    assert next(judged("textvqa", released, found))["verdict"] == "nothing published"
    found["variants"] = [variant("fp32 + q8_0", 86.6)]
    assert next(judged("pope", released, found))["verdict"] == "the first variant is not fp16 + f16"
    found["variants"] = [{**first, "subset": True}]
    assert next(judged("pope", released, found))["verdict"] == "a part of the set"


def test_the_page_has_the_figures_and_the_bounds_that_are_judged() -> None:
    page = (Path(__file__).parents[3] / "docs" / "released.md").read_text(encoding="utf-8")
    assert "\n".join(page_lines()) in page
    assert f"Registered on {REGISTERED}" in page
    assert f"within **{FP16_WITHIN} points**" in page
    assert f"within **{Q4_WITHIN} points**" in page


def test_a_checkpoint_that_is_not_there_is_told_and_fails(tmp_path: Path) -> None:
    arguments = [
        "hub-check",
        "-o",
        str(tmp_path / "report"),
        "--hub-root",
        str(tmp_path),
        "--checkpoints",
        OTHER,
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert (
        "no such directory in the stand-in"
        in (tmp_path / "report" / f"{OTHER.replace('/', '--')}.json").read_text()
    )


def test_what_would_be_found_out_after_the_downloads_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "kept.tar.gz").write_bytes(b"of another run")
    for arguments, named in (
        (["-o", str(tmp_path / "report"), "--eval-data", str(tmp_path)], "holds neither pope/ nor textvqa/"),
        (["-o", str(tmp_path / "kept")], r"kept.tar.gz: exists already"),
    ):
        result = CliRunner().invoke(app, ["hub-check", *arguments])
        assert named in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.tar.gz"]


def test_every_released_checkpoint_is_listed_once() -> None:
    names = [released.repository for released in RELEASED]
    assert len(set(names)) == len(names) == 8
