"""`hub-check` on a directory in the place of the hub, laid out as released repositories are."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.benchmarks.evals.test_public_sets import LABELS, write_pope
from tests.golden import golden_checkpoint, shared_fixtures
from tinyllava_edge.benchmarks.evals.hub_check import RELEASED, markdown_lines
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


@pytest.mark.slow
def test_one_report_has_the_whole_and_the_broken_one(hub: Path, eval_data: Path, tmp_path: Path) -> None:
    arguments = ["hub-check", "-o", str(tmp_path / "report"), "--hub-root", str(hub), "--language", "f16"]
    arguments += ["--checkpoints", f"{RELEASE},{OTHER}", "--sources", str(shared_fixtures() / "sources")]
    result = CliRunner().invoke(app, [*arguments, "--eval-data", str(eval_data)])
    assert result.exit_code == 1, result.output  # for the broken one
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    whole, broken = report["checkpoints"]
    assert whole["error"] == ""
    assert whole["verify"]["passed"], whole["verify"]["verdict"]
    pope = whole["scores"]["pope"]
    assert (pope["asked"], pope["of"], pope["published"]) == (8, 8, 85.4)
    assert pope["difference"] == pytest.approx(pope["score"] - 85.4)
    assert "model-00002-of-00002.safetensors" in broken["error"]
    assert not (hub / "code-was-run").exists()
    assert not (tmp_path / "report" / "bundles").exists()
    with tarfile.open(tmp_path / "report.tar.gz") as packed:
        assert "report/report.md" in packed.getnames()
    table = (tmp_path / "report" / "report.md").read_text()
    assert f"{pope['score']:.1f} (85.4, {pope['difference']:+.1f})" in table
    assert list(markdown_lines(report)) == table.splitlines()


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
