"""Steps, modes, peers' clients and the judgement, on programs and files written here. No device."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench.boards import write_files
from tinyllava_edge.benchmarks.hardware.judge import judged, registered_board
from tinyllava_edge.benchmarks.hardware.modes import chosen_modes, restore_mode, set_mode
from tinyllava_edge.benchmarks.hardware.peer_transformers import measure
from tinyllava_edge.benchmarks.hardware.peers import PEERS, peer_steps
from tinyllava_edge.benchmarks.hardware.report import markdown_lines
from tinyllava_edge.benchmarks.hardware.steps import Step, run_step
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.device import Cpu, Machine, read_machine
from tinyllava_edge.errors import UsageError
from tinyllava_edge.jetson import Jetson

PEER_SERVER = Path(__file__).parents[3] / "benchmarks/bench/peers/peer_server.py"
NVPMODEL = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_step_keeps_its_result_and_its_log(tmp_path: Path) -> None:
    step = Step(name="a", commands=(python("print('words')"), python("print('{\"x\": 1}')")))
    record = run_step(step, tmp_path)
    assert (record["state"], record["result"], record["reason"]) == ("passed", {"x": 1}, "")
    assert json.loads((tmp_path / "steps/a.json").read_text()) == record
    assert "words" in (tmp_path / "logs/a.txt").read_text()


def test_a_failure_is_its_last_words_and_what_is_behind_it_is_not_done(tmp_path: Path) -> None:
    marks = [python(f"open({str(tmp_path / name)!r}, 'w')") for name in ("behind", "after")]
    failing = python("import sys; sys.exit('tinyllava-edge: no such thing')")
    record = run_step(Step(name="a", commands=(failing, marks[0]), after=(marks[1],)), tmp_path)
    assert (record["state"], record["reason"]) == ("failed", "code 1: no such thing")
    assert not (tmp_path / "behind").exists()
    assert (tmp_path / "after").exists()
    absent = run_step(Step(name="b", commands=(("/no/such/program",),)), tmp_path)
    assert (absent["state"], absent["reason"]) == ("failed", "/no/such/program: No such file or directory")


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    record = run_step(Step(name="a", commands=(parent,), minutes=0.1), tmp_path)
    assert record["reason"].endswith("was ended: it took longer than it may")
    process = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{process}").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_needed_and_not_here_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    record = run_step(Step(name="a", commands=(python("1 / 0"),), needs=("docker",)), tmp_path)
    assert (record["state"], record["reason"]) == ("skipped", "docker is not installed")


def test_modes_are_known_by_name(tmp_path: Path) -> None:
    files = {"etc/nvpmodel.conf": NVPMODEL, "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet"}
    root = write_files(tmp_path, {**files, "proc/device-tree/compatible": "nvidia,tegra234"})
    assert chosen_modes((), root) == ("",)
    assert chosen_modes(("all",), root) == ("15W", "MAXN_SUPER")
    assert set_mode("15W", root) == (("sudo", "-n", "nvpmodel", "-m", "0"),)
    assert set_mode("", root) == ()
    assert restore_mode(root) == (("sudo", "-n", "nvpmodel", "-m", "2"),)
    with pytest.raises(
        UsageError, match=r"25W: this machine has no such power mode\. It has: 15W, MAXN_SUPER"
    ):
        chosen_modes(("25W",), root)
    assert restore_mode(tmp_path / "elsewhere") == ()


def test_every_peer_has_its_command_and_is_said_not_to_have_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TENSORRT_EDGELLM", raising=False)
    steps = peer_steps(PEERS, Bundle.open(bundle_path("nano")), "Qwen/Qwen2.5-0.5B-Instruct", tmp_path)
    assert [step.name for step in steps] == [f"peer-{name}" for name in PEERS]
    assert not any(step.has_run for step in steps)
    server, vllm, edge, transformers = steps
    assert server.commands[0][3:6] == ("770", "64", "8")
    assert " -m /models/q8_0.gguf --port 8089 -ngl 99 " in " ".join(server.commands[0])
    assert "Qwen/Qwen2.5-0.5B-Instruct" in vllm.commands[0]
    assert "names no built checkout" in edge.skip
    assert transformers.commands[0][1:3] == ("-m", "venv")
    write_files(tmp_path, {"build/examples/llm/llm_bench": ""})
    monkeypatch.setenv("TENSORRT_EDGELLM", str(tmp_path))
    (built,) = peer_steps(("tensorrt-edge-llm",), Bundle.open(bundle_path("nano")), "", tmp_path)
    assert not built.skip
    assert " --mode prefill --inputLen 770 --warmup 2 " in " ".join(built.commands[1])


FAKE_SERVER = """
import http.server, json, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"data": [{"id": "m"}]}')
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        open(sys.argv[2], "a").write(json.dumps(asked) + "\\n")
        self.send_response(200); self.end_headers()
        time.sleep(0.2)
        for _ in range(asked["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\\n\\n'); self.wfile.flush()
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\\n\\n")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_started_asked_alike_and_ended(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "server.py").write_text(FAKE_SERVER)
    client = (sys.executable, str(PEER_SERVER), f"http://127.0.0.1:{port}", "9", "4", "2", "--")
    server = (sys.executable, str(tmp_path / "server.py"), port, str(tmp_path / "asked"))
    record = run_step(Step(name="peer-x", commands=((*client, *server),), minutes=2), tmp_path)
    assert record["state"] == "passed", record["reason"]
    found = record["result"]
    assert (found["model"], found["prompt_tokens"], found["answer_tokens"]) == ("m", 9, 4)
    assert found["first_token_ms"] >= 200
    assert 0 < found["tokens_per_second"] <= 1000 / 50
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [len(request["prompt"]) for request in asked] == [9, 9, 9]
    assert len({tuple(request["prompt"]) for request in asked}) == 3
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", int(port))) != 0


def test_a_server_that_ends_says_so(tmp_path: Path) -> None:
    client = (sys.executable, str(PEER_SERVER), "http://127.0.0.1:9", "9", "4", "2", "--")
    record = run_step(Step(name="a", commands=((*client, *python("raise SystemExit(3)")),)), tmp_path)
    assert record["reason"] == "code 1: the server ended with code 3 before it answered"


def test_transformers_is_timed_on_a_small_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    found = measure(str(tmp_path), tokens=16, answer=4, runs=2, device="cpu")
    assert (found["prompt_tokens"], found["answer_tokens"], found["device"]) == (16, 4, "cpu")
    assert found["first_token_ms"] > 0
    assert found["tokens_per_second"] > 0


def orin() -> Machine:
    jetson = Jetson(
        model="Orin Nano", l4t="36.4.3", jetpack="6.2", power_mode="MAXN_SUPER", module="p3767-0005"
    )
    cpu = Cpu(
        model="Arm Cortex-A78AE", architecture="aarch64", logical_cpus=6, physical_cores=6, quota=None,
        usable_cores=6, features=(),
    )  # fmt: skip
    return Machine(system="Linux", cpu=cpu, memory=None, gpus=(), jetson=jetson)


def bench_record(parameters: int, language: str = "q4_k_m") -> dict[str, Any]:
    warm = {
        "stages_ms": {"vision": 80.0, "prefill": 100.0}, "first_token_ms": 195.0, "tokens_per_second": 60.0,
    }  # fmt: skip
    cell: dict[str, Any] = {
        "model": "m",
        "runtime": "tensorrt+llamacpp",
        "vision": "fp16",
        "language": language,
    }
    cell["warm"] = warm
    cells = [
        {**cell, "name": name, "device_peak_bytes": 1_550_000_000, "energy": None}
        for name in ("a", "a again")
    ]
    bundle = {"name": "m", "parameters": {"language_model": parameters}, "tokens_per_picture": 728}
    return {"bundles": [bundle], "control": "a again", "cells": cells}


def test_rows_are_judged_where_board_model_and_variant_are_registered(tmp_path: Path) -> None:
    path = tmp_path / "bench-m" / "report.json"
    path.parent.mkdir()
    path.write_text(json.dumps(bench_record(494_032_768)))
    (row,) = judged(tmp_path, orin())
    verdicts = {figure["key"]: figure["verdict"] for figure in row["figures"]}
    assert verdicts == {
        "tower": "within, goal met",
        "prefill": "within",
        "first_token": "within, goal met",
        "decode": "worse, goal missed",
        "peak": "within, goal met",
    }
    path.write_text(json.dumps(bench_record(1_000_000)))
    assert next(judged(tmp_path, orin()))["why_none"] == "no figures are registered for this model"
    path.write_text(json.dumps(bench_record(494_032_768, "f16")))
    assert "q4_k_m" in next(judged(tmp_path, orin()))["why_none"]
    assert registered_board(orin()) == "orin-nano-8gb"
    if registered_board(read_machine()) is None:
        assert "none of those with registered figures" in next(judged(tmp_path, read_machine()))["why_none"]


def test_the_report_shows_figures_peers_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bench-m").mkdir()
    (tmp_path / "bench-m" / "report.json").write_text(json.dumps(bench_record(494_032_768)))
    step = {"name": "peer-vllm", "state": "passed", "seconds": 1.0, "reason": "", "has_run": False}
    result = {"model": "m|n", "prompt_tokens": 770, "first_token_ms": 61.0, "tokens_per_second": 56.0}
    machine: dict[str, Any] = {"cpu": {"model": "A78AE"}, "gpus": [], "jetson": None, "system": "Linux"}
    record = {
        "machine": machine, "missing": {"cuda": "no NVIDIA GPU is here"},
        "steps": [{**step, "result": result}], "judged": list(judged(tmp_path, orin())),
    }  # fmt: skip
    text = "\n".join(markdown_lines(record))
    assert "REQUIRED AND MISSING: cuda: no NVIDIA GPU is here." in text
    assert "| peer-vllm | m/n | 770 | 61.0 | 56.0 |" in text
    assert "| decode, Q4_K_M | 60.0 tokens/s | 84.3 to 189.2 | 180 | 23% | worse, goal missed |" in text


@pytest.fixture(autouse=True)
def nothing_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYLLAVA_EDGE_REQUIRE", raising=False)
    assert os.environ.get("TINYLLAVA_EDGE_REQUIRE") is None
