"""The command as users meet it: in its own process."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.small_bundle import change_manifest, write_small_bundle
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.cli import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "llama_cpp", "gguf", "safetensors", "numpy", "PIL")
HELP_RATIO = 3  # of the CPU time of typer's own help; 1 to 1.9 were measured, 3.6 with numpy; torch is 9


def run(
    *arguments: str | Path, module: str = "tinyllava_edge", **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
    )


def assert_one_line(*arguments: str | Path, named: tuple[str, ...] = ()) -> None:
    """The command ends with one line on stderr and code 2."""
    result = run(*arguments)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("tinyllava-edge: ")
    assert result.stderr.count("\n") == 1
    for name in named:
        assert name in result.stderr


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH where the heavy packages are traps."""
    folder = tmp_path_factory.mktemp("traps")
    for package in HEAVY:
        (folder / f"{package}.py").write_text(f"raise SystemExit('{package} was imported')")
    return folder


def _timed_help(*command: str, module: str, path: Path) -> tuple[str, float]:
    """The help that a module prints, with PYTHONPATH, and the CPU seconds that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run(*command, "--help", module=module, PYTHONPATH=str(path))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_needs_no_torch_and_little_time(command: str | None, without_torch: Path) -> None:
    words = [command] if command else []
    ratios = []
    for _ in range(5):  # the least: other programs on the machine may hit one of the two
        _, reference = _timed_help(module="typer", path=without_torch)
        printed, spent = _timed_help(*words, module="tinyllava_edge", path=without_torch)
        assert (command or "doctor") in printed
        ratios.append(spent / reference)
        if ratios[-1] < HELP_RATIO:
            break
    assert min(ratios) < HELP_RATIO


def test_without_arguments_the_commands_are_listed() -> None:
    result = run()
    for command in COMMANDS:
        assert command in result.stdout + result.stderr


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == "tinyllava-edge 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "absent"),
        ("inspect", "pyproject.toml"),
        ("inspect", "tests"),
        ("export", "absent", "-o", "nowhere/out"),
        ("export", "tests", "-o", "nowhere/out"),
        ("verify", "absent"),
        ("verify", "tests"),
        ("run", "absent", "photo.jpg", "What is this?"),
        ("run", "tests", "photo.jpg", "What is this?"),
        ("chat", "absent"),
    ],
    ids=" ".join,
)
def test_a_path_that_is_nothing_we_know_is_named(arguments: tuple[str, ...]) -> None:
    assert_one_line(*arguments, named=(arguments[1],))
    assert not (ROOT / "nowhere").exists()


def test_training_data_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    absent = tmp_path / "absent.json"
    assert_one_line("train", "--data", absent, "--from", "nano", "-o", tmp_path / "out", named=(str(absent),))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("mine")
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", hidden=32, intermediate=48, layers=1)
    assert_one_line("export", checkpoint, "-o", out, named=(str(out), "--force"))
    assert_one_line("export", checkpoint, "-o", out, "--force", named=(str(out),))
    assert (out / "kept").read_text() == "mine"


def test_a_spoilt_bundle_is_named(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    (bundle / "language" / "f16.gguf").write_bytes(b"short")
    for command in (["inspect"], ["verify"], ["chat"]):
        assert_one_line(*command, bundle, named=("f16.gguf", "5 bytes"))
    assert_one_line("run", bundle, "photo.jpg", "What?", named=("f16.gguf",))


def test_markup_in_a_bundle_is_shown_as_text(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    change_manifest(bundle, lambda m: m["parts"]["vision_tower"].update(architecture="[/red][bold]x"))
    result = run("inspect", bundle, COLUMNS="120")
    assert (result.returncode, result.stderr) == (0, "")
    assert "[/red][bold]x" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nonsense",), "nonsense"),
        (("--nonsense",), "--nonsense"),
        (("export", "--nonsense"), "--nonsense"),
        (("run", "nano"), "QUESTION"),
        (("verify",), "bundle"),
        (("run", "nano", "what", "--threads", "many"), "--threads"),
        (("run", "nano", "what", "--threads", "0"), "--threads"),
        (("train", "nano", "-o", "out"), "nano"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: tuple[str, ...], named: str) -> None:
    assert_one_line(*arguments, named=(named, "--help"))
