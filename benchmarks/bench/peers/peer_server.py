"""Time of a server that speaks OpenAI's completions: `peer_server.py URL TOKENS ANSWER RUNS -- COMMAND...`.

Starts the command, waits until it answers, sends prompts of so many token ids, ends it, and prints a line of
JSON. It needs nothing but Python. Every server is sent the same: no prompt that was there before, greedy, and
no end before ANSWER tokens. Not yet run on hardware.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from statistics import median
from typing import Any

START_S = 1200.0  # a server may fetch and compile its model
_FIRST_ID, _IDS = 1000, 20_000  # plain tokens of every vocabulary at hand


def main(url: str, tokens: int, answer: int, runs: int, command: list[str]) -> dict[str, Any]:
    """Serve, measure, end.

    Raises:
        SystemExit: the server ended, or did not answer in time.
    """
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        model = wait_for(url, process)
        measure(url, model, tokens, answer, seed=0)  # warm-up
        found = [measure(url, model, tokens, answer, seed=run + 1) for run in range(runs)]
    finally:
        end(process)
    return {
        "model": model, "prompt_tokens": tokens, "answer_tokens": answer, "runs": runs,
        "first_token_ms": median(first for first, _ in found),
        "tokens_per_second": median(1000 / per_token for _, per_token in found),
    }  # fmt: skip


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> str:
    """The name of the model that it serves, as soon as it does."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode} before it answered")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
                return str(json.load(answer)["data"][0]["id"])
        except (OSError, ValueError, LookupError):  # not yet
            time.sleep(0.5)
    raise SystemExit(f"the server did not answer at {url} within {START_S:.0f} s")


def measure(url: str, model: str, tokens: int, answer: int, seed: int) -> tuple[float, float]:
    """Time in ms to the first token, and from one to the next (TPOT)."""
    prompt = [_FIRST_ID + (7919 * (seed + 1) + 31 * index) % _IDS for index in range(tokens)]
    body = {
        "model": model, "prompt": prompt, "max_tokens": answer, "temperature": 0, "stream": True,
        "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start, marks = time.perf_counter(), []
    with urllib.request.urlopen(request, timeout=600) as stream:
        for line in stream:
            if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                marks.append(time.perf_counter())
    if len(marks) < 2:
        raise SystemExit("the server streamed no tokens")
    return 1000 * (marks[0] - start), 1000 * (marks[-1] - marks[0]) / (answer - 1)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and what it started; a container ends with its client."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    where, prompt_length, answer_length, repeats, _, *words = sys.argv[1:]
    print(json.dumps(main(where, int(prompt_length), int(answer_length), int(repeats), words)))  # noqa: T201
