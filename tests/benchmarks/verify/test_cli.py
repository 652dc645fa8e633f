"""The commands `verify` and `bench` as a user runs them: output, exit codes, files. CPU, a tiny bundle."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import Honest

from .faults import FAULTS

PICTURE = Path(__file__).parents[3] / "docs" / "pictures" / "emoji.webp"


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tinyllava_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bundle(honest: Honest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(honest.bundle, tmp_path_factory.mktemp("cli") / "bundle"))


def only_f32(*more: str | Path) -> tuple[str | Path, ...]:
    return ("--vision", "fp32", "--language", "f32", "--threads", "1", *more)


def test_verify_prints_one_line_of_json_and_keeps_it_beside_the_manifest(bundle: Path) -> None:
    result = run("verify", bundle, *only_f32("--json"))
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert next(iter(printed)) == "verdict"
    assert printed["verdict"].startswith(
        "verified: bundle is equal to the tensors stored in it in 7 of 10 stages"
    )
    kept = json.loads((bundle / "parity" / "onnxruntime+llamacpp.json").read_text())
    manifest_sha256 = kept.pop("manifest_sha256")
    assert {**kept, "schema": 1} == printed
    assert len(manifest_sha256) == 64
    assert printed["passed"]
    assert printed["variants"] == {"vision": ["fp32"], "language": ["f32"]}
    assert (printed["quick"], printed["num_pictures"], printed["num_tokens"]) == (False, 3, None)
    assert {stage["variant"] for stage in printed["stages"]} == {"", "fp32", "f32"}


def test_a_result_that_cannot_be_written_is_still_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = run("verify", "nano", "--language", "f16", "--threads", "1")
    assert result.returncode == 0, result.stderr
    equal = "verified: nano is equal to the tensors stored in it in 7 of 10 stages"
    verdict = f"{equal}; not checked: weights, metadata, splice (give --checkpoint)"
    assert result.stdout.splitlines()[0] == verdict
    assert "not written to" in result.stderr


@pytest.mark.slow
def test_verify_against_the_checkpoint_says_so_for_people(bundle: Path, honest: Honest) -> None:
    result = run("verify", bundle, "--checkpoint", honest.checkpoint, *only_f32("--quick"))
    assert result.returncode == 0, result.stderr
    said = "verified: bundle is equal to its checkpoint in 10 of 10 stages"  # f32 has no dequantized
    assert result.stdout.splitlines()[0] == said
    assert str(honest.checkpoint) in result.stdout.replace("\n", "")


def test_a_bundle_that_differs_exits_with_1_and_the_cause(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == "wrong mean"]
    fault.plant(bundle, tmp_path / "faulty", monkeypatch)
    result = run("verify", tmp_path / "faulty", *only_f32())
    assert result.returncode == 1
    first = result.stdout.splitlines()[0]
    assert first.startswith(
        "different: first at pixels (wrong_pictures 3, gate <= 0); likely cause: a constant"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--language", "q2_k"), "no language variant 'q2_k'"),
        (("--sources", "."), "give --checkpoint too"),
        (("--quick",), "--quick changes nothing without --checkpoint"),
        (("--runtime", "tensorflow"), "no runtime 'tensorflow'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run("verify", bundle, *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_a_device_without_torch_verifies_with_the_stored_tensors(bundle: Path) -> None:
    hidden = ["torch", "transformers", "onnx", "gguf", "sentencepiece", "safetensors"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden})); "
        f"sys.argv = {['tinyllava-edge', 'verify', str(bundle), *only_f32('--json')]}; "
        "from tinyllava_edge.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    skipped = {stage["stage"]: stage["skipped"] for stage in json.loads(result.stdout)["stages"]}
    assert skipped["tower"] == "needs the package onnx"
    assert skipped["connector"] == skipped["logits"] == skipped["greedy"] == ""


def test_a_changed_file_is_refused_before_anything_is_compared(bundle: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    file = changed / "language" / "f32.gguf"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = run("verify", changed)
    assert result.returncode == 2
    assert "f32.gguf" in result.stderr


def bench(bundle: Path, *more: str | Path) -> "subprocess.CompletedProcess[str]":
    few = ("--language", "f32", "--runs", "2", "--sessions", "1", "--tokens", "2", "--threads", "1")
    return run("bench", bundle, *few, "--runtime", "scripted", *more)


def test_bench_writes_a_report_and_prints_it_as_json(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([{"question": "What is this?", "answer": "nothing"}]))
    scored = ("--questions", tmp_path / "q.json", "--images", tmp_path)
    shown = f"data:image/webp;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    result = bench(bundle, "-o", tmp_path / "out", *scored, "--picture", shown, "--json")
    assert result.returncode == 0, result.stderr
    printed: dict[str, Any] = json.loads(result.stdout)
    assert printed["request"]["picture"]["sha256"] == hashlib.sha256(PICTURE.read_bytes()).hexdigest()
    assert printed["cells"][0]["quality"]["questions"] == printed["questions"]["questions"] == 1
    assert printed["questions"]["pictures"] == 0
    assert [cell["name"] for cell in printed["cells"]] == ["fp32 + f32", "fp32 + f32 again"]
    written_report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert printed == {"schema": 1, **written_report}
    pictures = {"report.png", "choice.png", "roofline.png"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.json", "report.md", "report.html", *pictures}


def test_bench_without_an_output_prints_both_tables_and_what_they_mean(bundle: Path) -> None:
    result = bench(bundle)
    assert result.returncode == 0, result.stderr
    assert "| cell | MB |" in result.stdout
    assert "| stitching |" in result.stdout
    assert "A/A control" in result.stdout
    assert "give -o DIR" in result.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--runtime", "tensorflow"), "no runtime 'tensorflow'"),
        (("--vision", "int8"), "no vision variant 'int8'"),
        (("--questions", "q.json"), "--questions and --images go together"),
        (("-o", "."), "--force"),
        (("--checkpoint", "."), "is not the checkpoint"),
    ],
)
def test_bench_refuses_before_any_work(bundle: Path, more: tuple[str, ...], said: str) -> None:
    result = bench(bundle, *more)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_bench_compare_is_a_command_of_two_words_and_listed() -> None:
    listed = run("--help").stdout
    assert "bench compare" in listed
    assert "bench compare" in run("bench", "compare", "--help").stdout
    assert "BUNDLE..." in run("bench", "--help").stdout
