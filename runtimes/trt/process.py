"""What `build` does with a GPU, in processes apart, which are given a JSON of their task.

The library, its copy of the weights and its workspace are gone when a process ends, the peak memory is that
of the build alone, and where the system kills a build for want of memory, it is an error and not the end.
`build` itself opens neither TensorRT nor CUDA, so that nothing is held of the GPU while its child builds.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from tinyllava_edge import errors
from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import json_lines, progress
from tinyllava_edge.errors import EngineBuildError, EngineMemoryError, TensorRTError, TinyLlavaEdgeError
from tinyllava_edge.memory import peak_memory_bytes
from tinyllava_edge.module_process import module_command
from tinyllava_edge.process import detail

from .binding import open_tensorrt
from .builder import OnProgress, build_engine
from .cache import EngineCache
from .compare import compare_engine
from .cudart import Gpu, open_cudart
from .lookup import read_board
from .options import EngineOptions
from .plan import checked_plan_facts
from .record import Board, EngineRecord

_REPORT_SECONDS = 0.1  # between two lines about progress
_DOES = {"build": "builds the engine", "board": "looks at the GPU", "compare": "runs the engine"}
_LAST_WORDS_BYTES = 8192  # of a process that ended without an answer


def build_engine_apart(
    onnx_path: Path,
    options: EngineOptions,
    plan_path: Path,
    on_progress: OnProgress = lambda phase, done, total: None,
    *,
    plan_rules: bool = False,
    islands: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build an engine in a process of its own and write its plan to a file.

    Args:
        onnx_path: the vision graph.
        options: how.
        plan_path: the engine's file, which appears whole or not at all.
        on_progress: called with a phase, the steps it has done and how many it has.
        plan_rules: read the engine's plan and refuse an engine that lost what makes it fast
            (`checked_plan_facts`); known to work for TensorRT-RTX.
        islands: what the export kept in float32 on purpose (`islands` in the bundle's parity/export.json).

    Returns:
        The facts of `build_engine`, `peak_memory_bytes` of the process, and `plan` where `plan_rules`.

    Raises:
        as `build_engine` and `checked_plan_facts` do.
    """
    task = {
        "job": "build",
        "onnx": onnx_path,
        "options": options,
        "plan": plan_path,
        "plan_rules": plan_rules,
        "islands": islands,
    }
    facts: dict[str, Any] = run_apart(task, on_progress, environment=_only_gpu(options.device))
    return facts


def read_board_apart(target: str, device: int) -> tuple[Board, Gpu]:
    """What an engine depends on of this machine, and the GPU; the process that opened CUDA for it has ended.

    Raises:
        BackendError: TensorRT or the GPU is not usable; a TensorRT that cannot start is not.
        UsageError: there is no GPU of that number.
    """
    found = run_apart({"job": "board", "target": target, "device": device})
    return Board(**found["board"]), Gpu(**found["gpu"])


def compare_apart(
    bundle: Bundle, record: EngineRecord, plan: Path, largest_batch: int, device: int
) -> EngineRecord:
    """`compare_engine` of a plan in the engine cache, or in a work file there; raises as that does."""
    task = {
        "job": "compare",
        "bundle": bundle.root,
        "record": record,
        "plan": plan,
        "largest_batch": largest_batch,
        "device": device,
    }
    return EngineRecord.model_validate(run_apart(task), strict=False)


def run_apart(
    task: dict[str, Any],
    on_progress: OnProgress = lambda phase, done, total: None,
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """What a task results in, done by a process of its own; raises what it raised.

    Raises:
        EngineMemoryError: the system killed it.
        EngineBuildError: it ended otherwise without a result.
    """
    command = module_command(__spec__.name, to_json(task).decode())
    detail(f"a process of its own {_DOES[task['job']]}")
    result: dict[str, Any] = {}
    with TemporaryFile() as words:  # not a pipe: a library that says much would wait for somebody to read it
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=words, text=True, env={**os.environ, **environment}
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                result = json.loads(line)
                if "progress" in result:
                    on_progress(*result["progress"])
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        words.seek(max(0, words.tell() - _LAST_WORDS_BYTES))
        said = words.read().decode(errors="replace")
    if "result" in result and code == 0:
        return result["result"]
    raise _child_error(task["job"], result, code, said)


@contextmanager
def shown_progress() -> Iterator[OnProgress]:
    """What shows the progress of builds on stderr."""
    with progress() as bar:
        task = bar.add_task("build")
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


def _child_error(job: str, result: dict[str, Any], code: int, said: str) -> TinyLlavaEdgeError:
    if "error" in result:
        kind: type[TinyLlavaEdgeError] = getattr(errors, result["error"])
        if issubclass(kind, TensorRTError):
            return kind(result["message"], tuple(result["messages"]))
        return kind(result["message"])
    if code == -getattr(signal, "SIGKILL", 9):
        return EngineMemoryError(
            "the system killed the build, most likely for want of memory. Close other programs, give a "
            "smaller --max-batch or --workspace, or add swap while building."
        )
    last = " ".join(said.split()[-60:])
    return EngineBuildError(
        f"the process that {_DOES[job]} ended with code {code}: {last or 'it said nothing'}. Try again; if "
        "it stays, take --runtime onnxruntime+llamacpp."
    )


def serve(task: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Do what a task says, and say how it goes, in values that JSON has."""
    _offer_to_the_system()
    job = {"build": _build, "board": _read_board, "compare": _compare}[task["job"]]
    try:
        result = job(task, say)
    except TinyLlavaEdgeError as error:
        messages = getattr(error, "messages", ())
        say({"error": type(error).__name__, "message": str(error), "messages": messages})
        return
    say({"result": result})


def _build(task: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    options = TypeAdapter(EngineOptions).validate_python(task["options"])
    last = 0.0

    def on_progress(phase: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _REPORT_SECONDS:
            last = now
            say({"progress": [phase, done, total]})

    engine = build_engine(Path(task["onnx"]), options, on_progress, verbose=task["plan_rules"])
    facts = dict(engine.facts)
    if task["plan_rules"]:
        facts["plan"] = checked_plan_facts(engine, task["islands"])
    write_bytes(Path(task["plan"]), engine.plan)
    return {**facts, "peak_memory_bytes": peak_memory_bytes()}


def _read_board(task: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    binding = open_tensorrt(task["target"])
    gpu = open_cudart(task["device"]).read_gpu()
    binding.create_runtime()  # a TensorRT that cannot start is not a step
    return {"board": read_board(binding, gpu).model_dump(mode="json"), "gpu": asdict(gpu)}


def _compare(task: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    record = EngineRecord.model_validate(task["record"], strict=False)
    binding = open_tensorrt(record.key.board.library)
    with EngineCache().open_plan(record, Path(task["plan"])) as stored:
        cuda = open_cudart(task["device"])
        bundle = Bundle.open(Path(task["bundle"])).at_tokens(None, record.variant)
        compared = compare_engine(binding, cuda, bundle, stored, task["largest_batch"])
    return compared.model_dump(mode="json")


def _only_gpu(device: int) -> dict[str, str]:
    """What shows a process one GPU only, which it then takes: a builder has no option for it."""
    if device == 0:
        return {}
    shown = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]
    return {"CUDA_VISIBLE_DEVICES": shown[device] if device < len(shown) else str(device)}


def _offer_to_the_system() -> None:
    """Where memory runs out, Linux is to end this process, and not the user's desktop."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]), json_lines())
