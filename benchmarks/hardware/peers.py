"""Others on the same device: what each is run with, in an environment or container of its own.

None of them loads a TinyLLaVA checkpoint (llama-server does load the language model of a bundle), so the
others get Qwen2.5-0.5B with a prompt of as many tokens: their figures compare prefill and decode, not the
tower. Read from their documentation, and not yet run on hardware: docs/sources/measuring.md#peers.
"""

import os
import shutil
import sys
from pathlib import Path

from tinyllava_edge.benchmarks.bench.peers import peer_server
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.jetson import read_jetson

from .expectations import read_expectations
from .steps import Step

PEERS = ("llama-server", "vllm", "tensorrt-edge-llm", "transformers-cuda")
PEER_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
EDGE_LLM_VARIABLE = "TENSORRT_EDGELLM"  # a built checkout, with the exported model in onnx/llm
RUNS = "8"
_HERE = Path(__file__).parent
_PORT = "8089"


def peer_steps(names: tuple[str, ...], bundle: Bundle, model: str, folder: Path) -> list[Step]:
    """A step for each peer; those that cannot be run here say why.

    Args:
        names: of `PEERS`.
        bundle: whose language model llama-server gets.
        model: what the others get: a name of the hub, or a directory.
        folder: where their environments go.
    """
    prompt = read_expectations()["prompt"]
    lengths = (str(prompt["picture_tokens"] + prompt["text_tokens"]), str(prompt["answer_tokens"]), RUNS)
    made = {
        "llama-server": lambda: _llama_server(bundle, lengths),
        "vllm": lambda: _vllm(model, lengths),
        "tensorrt-edge-llm": lambda: _edge_llm(lengths),
        "transformers-cuda": lambda: _transformers(model, lengths, folder / "peers" / "transformers"),
    }
    return [made[name]() for name in names]


def _served(name: str, lengths: tuple[str, ...], command: tuple[str, ...], needs: tuple[str, ...]) -> Step:
    client = (sys.executable, peer_server.__file__, f"http://127.0.0.1:{_PORT}", *lengths, "--")
    return Step(name=f"peer-{name}", commands=((*client, *command),), needs=("cuda", *needs), minutes=60)


def _container(image: str, *mounts: str) -> tuple[str, ...]:
    gpu = ("--runtime", "nvidia") if read_jetson() else ("--gpus", "all")
    return ("docker", "run", "--rm", *gpu, "--network", "host", "--ipc", "host", *mounts, image)


def _llama_server(bundle: Bundle, lengths: tuple[str, ...]) -> Step:
    variants = [variant for variant in bundle.manifest.variants if variant.part == "language"]
    small = [variant for variant in variants if variant.name == "q4_k_m"] or variants
    file = bundle.path(small[-1].files[0])
    options = ("--port", _PORT, "-ngl", "99", "-c", "2048", "-fa", "on", "--no-webui")
    if shutil.which("llama-server"):
        return _served("llama-server", lengths, ("llama-server", "-m", str(file), *options), ())
    mounts = ("-v", f"{file.parent.resolve()}:/models:ro")
    model = ("-m", f"/models/{file.name}", *options)
    if read_jetson():
        image = "ghcr.io/nvidia-ai-iot/llama_cpp:latest-jetson-orin"
        command = (*_container(image, *mounts), "llama-server", *model)
    else:
        command = (*_container("ghcr.io/ggml-org/llama.cpp:server-cuda", *mounts), *model)
    return _served("llama-server", lengths, command, ("docker",))


def _vllm(model: str, lengths: tuple[str, ...]) -> Step:
    options = (
        *("--port", _PORT, "--max-model-len", "1024", "--gpu-memory-utilization", "0.5"),
        "--no-enable-prefix-caching",
    )
    cache = ("-v", f"{Path.home() / '.cache/huggingface'}:/root/.cache/huggingface")
    if Path(model).is_dir():
        cache = ("-v", f"{Path(model).resolve()}:/model:ro")
        model = "/model"
    if read_jetson():
        image = _container("ghcr.io/nvidia-ai-iot/vllm:latest-jetson-orin", *cache)
        return _served("vllm", lengths, (*image, "vllm", "serve", model, *options), ("docker",))
    command = (*_container("vllm/vllm-openai:latest", *cache), "--model", model, *options)
    return _served("vllm", lengths, command, ("docker",))


def _edge_llm(lengths: tuple[str, ...]) -> Step:
    """Its export runs on an x86 machine with a GPU, its builder and its bench on the device."""
    root = Path(os.environ.get(EDGE_LLM_VARIABLE, ""))
    llm, engines = root / "build/examples/llm", root / "engines/llm"
    bench = (str(llm / "llm_bench"), "--engineDir", str(engines), "--batchSize", "1")
    repeats = ("--warmup", "2", "--iterations", lengths[2], "--profile")
    skip = ""
    if not os.environ.get(EDGE_LLM_VARIABLE) or not (llm / "llm_bench").exists():
        skip = (
            f"{EDGE_LLM_VARIABLE} names no built checkout of NVIDIA/TensorRT-Edge-LLM; its model comes from "
            f"an x86 machine: tensorrt-edgellm-quantize llm --model_dir {PEER_MODEL} --quantization int4_awq "
            "--output_dir quantized && tensorrt-edgellm-export quantized onnx"
        )
    build = (
        *(str(llm / "llm_build"), "--onnxDir", str(root / "onnx/llm"), "--engineDir", str(engines)),
        *("--maxBatchSize", "1", "--maxInputLen", "1024", "--maxKVCacheCapacity", "2048"),
    )
    return Step(
        name="peer-tensorrt-edge-llm",
        commands=(
            build,
            (*bench, "--mode", "prefill", "--inputLen", lengths[0], *repeats),
            (*bench, "--mode", "decode", "--pastKVLen", lengths[0], *repeats),
        ),
        needs=("cuda",),
        skip=skip,
        minutes=60,
    )


def _transformers(model: str, lengths: tuple[str, ...], place: Path) -> Step:
    python = str(place / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    return Step(
        name="peer-transformers-cuda",
        commands=(
            (sys.executable, "-m", "venv", str(place)),
            (python, "-m", "pip", "install", "-q", "torch", "transformers"),
            (python, str(_HERE / "peer_transformers.py"), model, *lengths, "cuda"),
        ),
        needs=("cuda",),
        skip="on a Jetson torch comes from NVIDIA's index for its JetPack, not from PyPI"
        if read_jetson()
        else "",
        minutes=90,
    )
