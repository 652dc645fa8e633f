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
import llama_cpp, numpy, onnxruntime, PIL.Image, platformdirs, pydantic, rich.progress, tokenizers, typer
os.environ["XDG_CACHE_HOME"] = sys.argv[3]
platformdirs.user_cache_path("x")
for name in "fcntl resource pwd grp termios tty pty syslog posix_ipc readline".split():
    sys.modules[name] = None
for name in ("getuid geteuid getgid getegid setsid killpg fork sysconf uname sched_getaffinity posix_fadvise "
             "posix_fallocate getloadavg O_NOFOLLOW O_CLOEXEC O_DIRECTORY mkfifo statvfs").split():
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)

import tinyllava_edge
imported, lacking = [], {}
for module in pkgutil.walk_packages(tinyllava_edge.__path__, "tinyllava_edge."):
    name = module.name
    if name.split(".")[1] in ("export", "train", "model", "__main__"):
        continue
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
print(json.dumps({"imported": imported, "lacking": lacking, "answer": answer, "peak": peak_memory_bytes()}))
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
    vendors = {"torch", "transformers", "onnx", "gguf", "matplotlib", "cryptography", "onnxscript"}
    assert set(found["lacking"].values()) <= vendors, found["lacking"]
    assert found["answer"]
    assert (tmp_path / "tinyllava-edge/engines").is_dir()
