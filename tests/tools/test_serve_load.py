"""The load generator against a real server for a second. nano, CPU."""

import json
import subprocess
import sys

from tests.runtimes.serve.serving import EMOJI, ROOT, running


def test_every_load_has_a_row_with_its_times() -> None:
    with running() as server:
        # An answer of one token each would have no time per token.
        answer = ("--max-tokens", "8", "--grammar", 'root ::= "yes and no"')
        options = ("--clients", "1,2", "--rates", "20", "--seconds", "0.5", *answer)
        load = [
            sys.executable,
            "-m",
            "tools.serve_load",
            server.url,
            *options,
            "--pictures",
            str(EMOJI),
            "--json",
        ]
        done = subprocess.run(load, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    rows = json.loads(done.stdout)["rows"]
    assert [row["load"] for row in rows] == ["closed loop, 1", "closed loop, 2", "Poisson, 20 a second"]
    for row in rows:
        assert row["errors"] == {}
        assert row["requests"] > 2
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"]
        assert 0 < row["goodput_per_s"] <= row["answers_per_s"]
        assert row["tokens_per_s"] > row["answers_per_s"]


def test_what_fails_is_counted_by_its_status() -> None:
    with running() as server:
        options = ("--model", "other", "--clients", "1", "--seconds", "0.3")
        load = [sys.executable, "-m", "tools.serve_load", server.url, *options]
        done = subprocess.run(load, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    [row] = [line for line in done.stdout.splitlines() if line.startswith("| closed")]
    assert row.rstrip(" |").endswith(" of 404")
