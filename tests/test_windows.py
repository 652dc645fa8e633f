"""What only POSIX has is taken away, as on Windows: everything is imported, and nano answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import importlib, json, os, pkgutil, signal, subprocess, sys
# What others wrote chooses by sys.platform, and is loaded as it is here.
for other in ("torch", "transformers.models.clip.modeling_clip"):
    try:
        importlib.import_module(other)
    except ModuleNotFoundError:
        pass
import llama_cpp, numpy, onnxruntime, PIL.Image, platformdirs, pydantic, rich.progress, tokenizers, typer
os.environ["XDG_CACHE_HOME"] = sys.argv[3]
platformdirs.user_cache_path("x")
from tests import windows_rules
windows_rules.apply()

import tinyllava_edge
imported, lacking = [], {}
def names(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.split(".")[1] not in ("export", "train", "model", "__main__"):
            yield module.name
            if module.ispkg:
                yield from names(importlib.import_module(module.name))
for name in names(tinyllava_edge):
    try:
        importlib.import_module(name)
        imported.append(name)
    except ModuleNotFoundError as error:
        lacking[name] = error.name.split(".")[0]
from tinyllava_edge import open_bundle
from tinyllava_edge.memory import peak_memory_bytes
from tinyllava_edge.runtimes.trt.cache import EngineCache
from tinyllava_edge.verified_files import VerifiedFiles
with open_bundle("nano", runtime=sys.argv[1]) as model:
    answer = model.ask("What is this?", [sys.argv[2]])
EngineCache(), VerifiedFiles()
from pathlib import Path
from typer.testing import CliRunner
from tinyllava_edge.append_jsonl import append_lines
from tinyllava_edge.cli import app
from tinyllava_edge.atomic_files import output_file, write_json
home = Path(sys.argv[3])
for _ in range(2):
    options = ["--vision", "fp16", "--language", "q8_0", "--force", "-o", str(home / "pruned")]
    ran = CliRunner().invoke(app, ["prune", "nano", *options])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    with output_file(home / "answer.json", force=True, mark=lambda _: "") as new:
        new.write_text("{}")
    write_json(home / "report.json", {})
    with append_lines(home / "lines.jsonl", {"of": "this"}, force=True, mark=lambda _: "") as lines:
        lines.append({"line": 1})
        lines.finish()
cleaned = CliRunner().invoke(app, ["doctor", "--clean", str(home), "--json"])
assert cleaned.exit_code == 0, (cleaned.output, cleaned.exception)
left = sorted(path.name for path in home.iterdir())
print(json.dumps({"imported": imported, "lacking": lacking, "answer": answer, "peak": peak_memory_bytes(),
                  "left": left}))
"""


def test_core_and_runtimes_are_imported_and_nano_answers_without_posix(tmp_path: Path) -> None:
    picture = ROOT / "docs/pictures/emoji.webp"
    command = [sys.executable, "-c", CODE, "onnxruntime+llamacpp", str(picture), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {f"tinyllava_edge.{name}" for name in ("memory", "runtimes.doctor", "runtimes.trt.builder")} <= {
        *found["imported"]
    }
    vendors = {
        "torch",
        "transformers",
        "onnx",
        "gguf",
        "matplotlib",
        "cryptography",
        "onnxscript",
        "lmms_eval",
    }
    assert set(found["lacking"].values()) <= vendors, found["lacking"]
    assert found["answer"]
    written = {"answer.json", "lines.jsonl", "pruned", "report.json"}
    assert {*found["left"]} == {*written, "tinyllava-edge"}, "nothing is left of the work"
    assert (tmp_path / "tinyllava-edge/engines").is_dir()
