"""What tests of `build` share."""

from typing import Any

import pytest
from pydantic_core import from_json, to_json

from tinyllava_edge import errors
from tinyllava_edge.errors import TensorRTError
from tinyllava_edge.runtimes.trt import process
from tinyllava_edge.runtimes.trt.builder import OnProgress


@pytest.fixture
def tasks_here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Do what `build` gives to processes of their own in this one, much faster; the tasks in order."""
    done: list[dict[str, Any]] = []

    def run_here(
        task: dict[str, Any],
        on_progress: OnProgress = lambda phase, done, total: None,
        *,
        environment: Any = None,
    ) -> Any:
        done.append(task)
        said: list[dict[str, Any]] = []
        process.serve(from_json(to_json(task)), said.append)
        answer = from_json(to_json(said[-1]))
        if "error" in answer:
            kind = getattr(errors, answer["error"])
            raise kind(answer["message"], *([()] if issubclass(kind, TensorRTError) else []))
        return answer["result"]

    monkeypatch.setattr(process, "run_apart", run_here)
    monkeypatch.setattr(process, "_offer_to_the_system", lambda: None)
    return done
