"""Build an engine in a process of its own: `python -m tinyllava_edge.runtimes.trt.process JSON`.

The library, its copy of the weights and its workspace are gone when the build ends, the peak memory is that
of the build alone, and where the system kills a build for want of memory, it is an error and not the end.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from tinyllava_edge import errors
from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.console import json_lines, progress
from tinyllava_edge.errors import EngineBuildError, EngineMemoryError, TensorRTError, TinyLlavaEdgeError
from tinyllava_edge.memory import peak_memory_bytes

from .builder import OnProgress, build_engine
from .options import EngineOptions
from .plan import checked_plan_facts

_REPORT_SECONDS = 0.1  # between two lines about progress
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
        "onnx": onnx_path,
        "options": options,
        "plan": plan_path,
        "plan_rules": plan_rules,
        "islands": islands,
    }
    command = [sys.executable, "-m", __spec__.name, to_json(task).decode()]
    result: dict[str, Any] = {}
    with TemporaryFile() as words:  # not a pipe: a library that says much would wait for somebody to read it
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True)
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
    if "facts" in result and code == 0:
        facts: dict[str, Any] = result["facts"]
        return facts
    raise _child_error(result, code, said)


@contextmanager
def shown_progress() -> Iterator[OnProgress]:
    """What shows the progress of builds on stderr."""
    with progress() as bar:
        task = bar.add_task("build")
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


def _child_error(result: dict[str, Any], code: int, said: str) -> TinyLlavaEdgeError:
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
        f"the process that builds the engine ended with code {code}: {last or 'it said nothing'}. Try again; "
        "if it stays, take --runtime onnxruntime+llamacpp."
    )


def _serve(task: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Build what the task says, and say how it goes, in lines of JSON."""
    options = TypeAdapter(EngineOptions).validate_python(task["options"])
    last = 0.0

    def on_progress(phase: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _REPORT_SECONDS:
            last = now
            say({"progress": [phase, done, total]})

    try:
        engine = build_engine(Path(task["onnx"]), options, on_progress, verbose=task["plan_rules"])
        facts = dict(engine.facts)
        if task["plan_rules"]:
            facts["plan"] = checked_plan_facts(engine, task["islands"])
        write_bytes(Path(task["plan"]), engine.plan)
    except TinyLlavaEdgeError as error:
        messages = getattr(error, "messages", ())
        say({"error": type(error).__name__, "message": str(error), "messages": messages})
        return
    facts["peak_memory_bytes"] = peak_memory_bytes()
    say({"facts": facts})


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]), json_lines())
