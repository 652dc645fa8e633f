"""One thread budget, and the OpenMP policy set before its library is loaded."""

import json
import os
import subprocess
import sys

import pytest

from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes import threads
from tinyllava_edge.runtimes.base import BackendOptions


def test_the_budget_is_what_was_asked_for_or_the_usable_cores() -> None:
    assert threads.thread_budget(3) == 3
    assert threads.thread_budget(None) == read_cpu().usable_cores


@pytest.mark.parametrize("number", [0, -1, 1025, 10**9])
def test_numbers_of_threads_that_no_machine_has_are_refused(number: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {number}"):
        BackendOptions(threads=number)


SHOW_POLICY = """
import json, os, sys
from tinyllava_edge.runtimes import llamacpp, llamacpp_library
before = os.environ.get("GOMP_SPINCOUNT"), "llama_cpp" in sys.modules
llamacpp_library.load_library()
print(json.dumps([*before, os.environ.get("GOMP_SPINCOUNT"), "llama_cpp" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, [None, "1000"]),
        ({"GOMP_SPINCOUNT": "77"}, ["77", "77"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [None, None]),
    ],
)
def test_the_spin_policy_is_set_on_opening_and_the_users_own_is_kept(
    setting: dict[str, str], expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    code = f"import platform; platform.machine = lambda: 'x86_64'\n{SHOW_POLICY}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **setting},
        capture_output=True,
        text=True,
        check=True,
    )
    before, loaded_before, after, loaded_after = json.loads(result.stdout)
    assert [before, after] == expected
    assert (loaded_before, loaded_after) == (False, True)


def test_a_machine_whose_waiting_loop_does_not_pause_spins_more_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    threads.limit_openmp_spin()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
