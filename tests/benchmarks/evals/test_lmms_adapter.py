"""lmms-eval itself, on nano and local pictures: its accuracy is that of our own `eval`. CPU, no network.

Needs the environment that `make test-lmms` builds; without it, it is skipped with that line.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.evals.conftest import Run
from tests.runtimes.serve.serving import running
from tinyllava_edge.benchmarks.bench.peers.environments import HOME as PEERS

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "demo"
HOME = PEERS / "lmms-eval"
PYTHON = ROOT / HOME / "bin" / "python"
ASKED = 24
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no environment at {HOME}: make test-lmms"),
]

TASK = """
task: nano_demo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false, until: []}}
process_results: !function utils.process_results
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 1.0}}]
"""
UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"])]

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def process_results(doc, results):
    plain = lambda text: text.strip().removesuffix(".").casefold()
    return {"right": float(plain(results[0]) == plain(doc["answer"]))}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about drawings, as records that both programs read, and a task of lmms-eval over them."""
    folder = tmp_path_factory.mktemp("task")
    records = []
    for row in json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))[:ASKED]:
        asked, answer = (message["value"] for message in row["conversations"])
        question = asked.replace("<image>", "").strip()
        image = str(DEMO / row["image"])
        records.append({"id": row["id"], "image": image, "question": question, "answer": answer})
    (folder / "q.json").write_text(json.dumps(records))
    (folder / "nano_demo.yaml").write_text(TASK.format(questions=folder / "q.json"))
    (folder / "utils.py").write_text(UTILS)
    own = [{**record, "image": Path(record["image"]).name} for record in records]
    (folder / "own.json").write_text(json.dumps(own))
    return folder


def lmms_eval(task: Path, output: Path, model: str, model_args: str) -> tuple[float, list[str]]:
    """The accuracy that lmms-eval prints of a model, and its answers."""
    line = [PYTHON, "-m", "lmms_eval", "--model", model, "--model_args", model_args, "--tasks", "nano_demo"]
    line += ["--include_path", task, "--batch_size", "1", "--output_path", output, "--log_samples"]
    places = {"HF_HOME": str(task / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, line)],
        capture_output=True,
        text=True,
        check=False,
        cwd=task,
        env={**environment, **places},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(output.rglob("*_results.json")), done.stdout[-3000:] + done.stderr[-3000:]  # it ends with 0
    [results] = output.rglob("*_results.json")
    [samples] = output.rglob("*samples_nano_demo.jsonl")
    found: dict[str, Any] = json.loads(results.read_text())["results"]["nano_demo"]
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    return found["right,none"], [row["filtered_resps"] for row in rows]


def own_eval(run: Run, task: Path, output: Path, *more: str) -> tuple[float, list[str]]:
    questions = ("--questions", task / "own.json", "--images", DEMO / "pictures", "--no-blind", "--json")
    code, out, err = run(*questions, "--language", "q8_0", "--answers", output, *more)
    assert code == 0, err
    lines = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    return json.loads(out)["accuracy"], [line["text"] for line in lines]


def test_accuracy_and_answers_are_those_of_eval(run: Run, task: Path, tmp_path: Path) -> None:
    accuracy, answers = own_eval(run, task, tmp_path / "own.jsonl")
    arguments = "bundle=nano,runtime=onnxruntime+llamacpp,vision=fp16,language=q8_0,threads=1"
    found, said = lmms_eval(task, tmp_path / "lmms", "tinyllava_edge", arguments)
    assert said == answers
    assert found == pytest.approx(accuracy)
    assert len(answers) == ASKED
    assert 0.2 < accuracy < 1  # right and wrong ones are among them


def test_over_the_endpoint_of_serve_it_is_the_same(run: Run, task: Path, tmp_path: Path) -> None:
    with running() as server:
        variants = ("--vision", server.model.vision.name.split()[-1], "--language", "q8_0")
        address = f"model_version=nano,base_url={server.url}/v1,api_key=none"
        found, said = lmms_eval(task, tmp_path / "lmms", "openai", address)
    accuracy, answers = own_eval(run, task, tmp_path / "own.jsonl", *variants)
    assert said == answers
    assert found == pytest.approx(accuracy)


def test_what_a_bundle_cannot_do_is_one_line(task: Path, tmp_path: Path) -> None:
    program = (
        "from tinyllava_edge.benchmarks.evals.lmms_adapter import TinyllavaEdge, asked_with\n"
        "for make in (lambda: TinyllavaEdge(batch_size=4), lambda: asked_with({'num_beams': 3}),\n"
        "             lambda: asked_with({'best_of': 2})):\n"
        "    try: make()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    for line, said in zip(lines, ("--batch_size 4", "num_beams 3", "generation_kwargs best_of"), strict=True):
        assert line.startswith("UsageError ")
        assert said in line
