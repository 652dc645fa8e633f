"""`deploy`: the folder is whole, answers as it says, and is refused where nothing fits."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_cli import assert_one_line, run
from tinyllava_edge.boards import BOARDS
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.command_options import FitOptions
from tinyllava_edge.errors import OutputExistsError, UsageError
from tinyllava_edge.memory_fit import find_target
from tinyllava_edge.runtimes import deploy
from tinyllava_edge.runtimes.deploy_wheel import write_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("deploy") / "nano"
    asked = FitOptions(language="q8_0")
    deploy.deploy_bundle(Bundle.open(bundle_path("nano")), output, "orin-nano-8gb", asked)
    return output


def test_the_folder_has_what_fits_and_what_it_needs(folder: Path) -> None:
    bundle = Bundle.open(folder / "bundle")
    assert [v.name for v in bundle.manifest.variants] == ["fp16", "q8_0"]
    pins = (folder / "requirements.txt").read_text()
    assert "onnxruntime==" in pins
    assert "llama-cpp-python==" not in pins  # compiled on the board, by the script's own line
    script = (folder / "install.sh").read_text()
    assert "-m tinyllava_edge.install" in script
    assert subprocess.run(["sh", "-n", folder / "install.sh"]).returncode == 0
    record = json.loads((folder / "deploy.json").read_text())
    assert {*record["files"], "deploy.json"} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    assert record["plan"]["fits"]


def test_the_answer_is_what_the_command_in_the_script_gives(folder: Path) -> None:
    record = json.loads((folder / "deploy.json").read_text())["first_answer"]
    words = ["--vision", "fp16", "--language", "q8_0", "--kv-type", "f16", "--context", "1024"]
    asked = run("run", folder / "bundle", folder / record["picture"], record["question"], *words)
    assert asked.stdout.strip() == record["answer"] == (folder / "first_answer.txt").read_text().strip()
    assert record["ids"]


def test_the_script_refuses_another_python(folder: Path) -> None:
    if sys.version_info[:2] == (3, 10):
        pytest.skip("this is the Python of the board")
    shim = folder.parent / "python3"
    shim.unlink(missing_ok=True)
    shim.symlink_to(sys.executable)
    path = {"PATH": f"{folder.parent}:/usr/bin:/bin"}
    done = subprocess.run(["sh", folder / "install.sh"], env=path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "these packages are for 3.10" in done.stderr
    assert not (folder / ".venv").exists()


def test_the_wheel_holds_what_setuptools_would_put_in(tmp_path: Path) -> None:
    if find_spec("setuptools") is None:  # an import would replace distutils for good
        pytest.skip("needs setuptools")
    source, built = tmp_path / "source", tmp_path / "built"  # setuptools leaves things in the source
    left_out = shutil.ignore_patterns(".*", "build", "demo-out", "*.egg-info", "tests", "docs", "shared")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    if subprocess.run([*pip, "-w", str(built), str(source)], capture_output=True).returncode:
        pytest.skip("setuptools here is too old to build this project")
    own = zipfile.ZipFile(write_wheel(tmp_path))
    theirs = zipfile.ZipFile(next(built.glob("*.whl")))
    code = [{n for n in wheel.namelist() if n.startswith("tinyllava_edge/")} for wheel in (own, theirs)]
    assert code[0] == code[1]


def test_pip_installs_the_wheel_and_it_runs_alone(folder: Path, tmp_path: Path) -> None:
    wheel = next((folder / "wheels").glob("tinyllava_edge-*.whl"))
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "site",
    ]
    subprocess.run([*pip, wheel], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import tinyllava_edge.runtimes.cli as c"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(c.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(tmp_path / "site")), done.stderr


def test_only_such_a_folder_is_replaced(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path("nano"))
    with pytest.raises(OutputExistsError, match="--force"):
        deploy.deploy_bundle(bundle, folder, "orin-nano-8gb", FitOptions())
    assert deploy.deploy_mark(folder) == ""
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"mine\.txt"):
        deploy.deploy_bundle(bundle, folder, "orin-nano-8gb", FitOptions(), force=True)
    (folder / "mine.txt").unlink()


def test_what_does_not_fit_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = replace(find_target("orin-nano-8gb"), host_free_bytes=100 << 20)
    monkeypatch.setattr(deploy, "find_target", lambda name: small)
    with pytest.raises(UsageError, match=r"does not fit .* needs 0\.4\d GiB of 0\.10 GiB"):
        deploy.deploy_bundle(
            Bundle.open(bundle_path("nano")), tmp_path / "out", "orin-nano-8gb", FitOptions()
        )
    assert not any(tmp_path.iterdir())


def test_a_device_without_resolved_packages_is_one_line(tmp_path: Path) -> None:
    assert_one_line("deploy", "nano", "--device", "t4", "-o", tmp_path / "x", named=("orin-nano-8gb",))
    assert {BOARDS[name].python for name in deploy.deployable()} == {"3.10", "3.12"}
