"""The command `eval` as a user runs it, on a tiny bundle whose answers are computed here first. CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.benchmarks.conftest import Honest
from tinyllava_edge import open_bundle

TEXTS = ("What is this?", "Is it red?")


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tinyllava_edge", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def asked(honest: Honest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Questions whose expected answers are what float32 really answers, but for one."""
    folder = tmp_path_factory.mktemp("eval")
    records: list[dict[str, Any]] = []
    with open_bundle(honest.bundle, language="f32", vision="fp32", threads=1) as model:
        for name, colour in (("red.png", (200, 0, 0)), ("blue.png", (0, 0, 200))):
            Image.new("RGB", (24, 16), colour).save(folder / name)
            for text in TEXTS:
                model.reset()
                answer = "".join(model.chat(text, [folder / name], max_tokens=4))
                records.append({"image": name, "question": text, "answer": answer, "type": text[:2]})
    records[-1]["answer"] = "something else"
    (folder / "q.json").write_text(json.dumps(records))
    return folder / "q.json", folder


def ask(honest: Honest, asked: tuple[Path, Path], *more: str | Path) -> "subprocess.CompletedProcess[str]":
    few = ("--max-tokens", "4", "--threads", "1", "--vision", "fp32")
    return run(honest.bundle, "--questions", asked[0], "--images", asked[1], *few, *more)


def test_accuracy_is_overall_and_by_type_and_the_last_line_is_json(
    honest: Honest, asked: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    result = ask(honest, asked, "--language", "f32,q8_0", "--answers", file)
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout.split('{"')[0]  # a table for people
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["accuracy"] == 3 / 4
    assert {kind: value["accuracy"] for kind, value in found["types"].items()} == {"Wh": 1.0, "Is": 0.5}
    assert (found["language"], found["vision"], found["questions"], found["images"]) == ("f32", "fp32", 4, 2)
    assert 0 <= found["blind_accuracy"] <= 1
    assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
    first, second = found["variants"]
    assert "against_first" not in first
    paired = {"agreement", "difference", "difference_ci95", "difference_se"}
    assert set(second["against_first"]) == {*paired, "mcnemar", "questions_for_one_point"}
    ends = ("", ".fp32+f32.blind", ".fp32+q8_0", ".fp32+q8_0.blind")  # a scorer takes one model's answers
    assert {path.name for path in tmp_path.iterdir()} == {f"answers{end}.jsonl" for end in ends}
    for end, name in zip(ends, ("fp32 + f32",) * 2 + ("fp32 + q8_0",) * 2, strict=True):
        rows = (tmp_path / f"answers{end}.jsonl").read_text().splitlines()
        about = {(row["model_id"], row["metadata"]["blind"]) for row in map(json.loads, rows)}
        assert (len(rows), about) == (4, {(name, "blind" in end)})
    seen = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["metadata"]["right"] for line in seen] == [True, True, True, False]
    assert set(seen[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    again = ask(honest, asked, "--answers", file)
    assert (again.returncode, "--force" in again.stderr) == (2, True)


def test_blind_shows_grey_and_json_prints_nothing_else(honest: Honest, asked: tuple[Path, Path]) -> None:
    result = ask(honest, asked, "--language", "f32", "--blind", "--json")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["blind"] is True
    assert found["accuracy"] == found["blind_accuracy"]


def write_textvqa(folder: Path, texts: list[str], people: list[list[str]]) -> Path:
    """One question about each picture; ten people's answers to it."""
    (folder / "train_images").mkdir(parents=True)
    asked, annotated = [], []
    for index, (text, answers) in enumerate(zip(texts, people, strict=True)):
        Image.new("RGB", (24, 16), (60 * index, 0, 0)).save(folder / "train_images" / f"p{index}.png")
        asked.append({"question_id": f"p{index}", "image": f"p{index}.png", "text": text})
        annotated.append({"image_id": f"p{index}", "question": text, "answers": answers})
    lines = "".join(json.dumps(line) + "\n" for line in asked)
    (folder / "llava_textvqa_val_v051_ocr.jsonl").write_text(lines)
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": annotated}))
    return folder


def test_a_benchmark_is_scored_by_its_own_rule(honest: Honest, tmp_path: Path) -> None:
    with open_bundle(honest.bundle, language="f32", vision="fp32", threads=1) as model:
        picture = Image.new("RGB", (24, 16), (0, 0, 0))
        answer = "".join(model.chat(TEXTS[0], [picture], max_tokens=4))
    # The first answer is everybody's, the second one nobody's: (1 + 0) / 2.
    folder = write_textvqa(tmp_path / "data", [TEXTS[0], TEXTS[1]], [[answer] * 10, ["no such thing"] * 10])
    arguments = (honest.bundle, "--benchmark", "textvqa", "--data", folder, "--max-tokens", "4")
    few = ("--threads", "1", "--vision", "fp32", "--language", "f32")
    file = tmp_path / "answers.jsonl"
    result = run(*arguments, *few, "--answers", file)
    assert result.returncode == 0, result.stderr
    assert "50.0 %" in result.stdout
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["benchmark"], found["score"], found["language"]) == ("textvqa", 50, "f32")
    assert (found["asked"], found["of"], found["subset"], found["images"]) == (2, 2, False, 2)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert (lines[0]["text"], lines[0]["metadata"]["right"]) == (answer.strip(), True)
    assert len(lines) == 2, "nothing is asked blind that nobody asked for"
    part = json.loads(run(*arguments, *few, "--limit", "1", "--json").stdout)
    assert (part["asked"], part["of"], part["subset"]) == (1, 2, True)
    for name in ("p0", "p1"):
        (folder / "train_images" / f"{name}.png").unlink()
    refused = run(*arguments, *few)
    assert (refused.returncode, "2 pictures are missing" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --questions and --images (and their"),
        (("--questions", "q.json"), "give --questions and --images (and their"),
        (("--questions", "q", "--images", "i", "--limit", "1"), "give --questions and --images (and their"),
        (("--benchmark", "pope", "--data", "d", "--images", "i"), "give --questions and --images (and their"),
        (("--benchmark", "ocr", "--data", "d"), "--benchmark 'ocr' is not known. Known: pope, textvqa,"),
        (("--benchmark", "pope", "--data", "d"), "coco_pope_random.json: cannot be read"),
    ],
)
def test_half_a_set_of_questions_is_refused(honest: Honest, arguments: tuple[str, ...], said: str) -> None:
    result = run(honest.bundle, *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_torch_is_scored_from_the_checkpoint(honest: Honest, asked: tuple[Path, Path]) -> None:
    more = ("--runtime", "torch,onnxruntime+llamacpp", "--language", "f32", "--checkpoint", honest.checkpoint)
    result = ask(honest, asked, *more, "--json")
    assert result.returncode == 0, result.stderr
    torch_row, f32 = json.loads(result.stdout)["variants"]
    assert (torch_row["name"], torch_row["language"]) == ("torch fp32", None)
    assert f32["against_first"]["agreement"] == 1.0
    assert torch_row["accuracy"] == f32["accuracy"] == 3 / 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--language", "q2_k"), "no language variant 'q2_k'"),
        (("--runtime", "tensorflow"), "no runtime 'tensorflow'"),
        (("--sources", "nowhere"), "--sources nowhere: no such directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    honest: Honest, asked: tuple[Path, Path], more: tuple[str, ...], said: str
) -> None:
    result = ask(honest, asked, *more)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
