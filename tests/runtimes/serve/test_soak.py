"""Minutes of everything at once: the server's memory and files stay what they were. nano, CPU."""

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtimes.serve.serving import LONG, QUESTION, asked, data_url
from tests.runtimes.serve.test_campaign import as_png, drawn_body
from tests.runtimes.serve.test_cli import started
from tinyllava_edge.console import note
from tinyllava_edge.memory import anonymous_bytes

PICTURES = 100
CHAT = "/v1/chat/completions"
SOAK_S = float(os.environ.get("TINYLLAVA_EDGE_SOAK_S", "300"))


def disturb(url: str, seed: int, ends: float, counts: list[int]) -> None:
    """A client that asks, sends nonsense, sends new pictures and goes away, in turns drawn at random."""
    draw = random.Random(seed)
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:
        while time.monotonic() < ends:
            kind = draw.randrange(4)
            body: Any = asked(QUESTION, data_url(), max_tokens=16)
            if kind == 1:
                body = asked(QUESTION, as_png(random.Random(draw.randrange(PICTURES))), max_tokens=4)
            if kind == 3:
                with client.stream("POST", CHAT, json=asked(QUESTION, stream=True, grammar=LONG)) as response:
                    next(response.iter_bytes(), None)
            elif kind == 2:
                headers = {"Content-Type": "application/json"}
                client.post(CHAT, content=drawn_body(draw), headers=headers)
            else:
                assert client.post(CHAT, json=body).status_code in (200, 429)
            counts[seed] += 1


@pytest.mark.long
def test_memory_stays_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    clients, seen = 4, list[int]()
    with started() as (process, url):
        ends, counts = time.monotonic() + SOAK_S, [0] * clients
        threads = [threading.Thread(target=disturb, args=(url, n, ends, counts)) for n in range(clients)]
        for thread in threads:
            thread.start()
        while time.monotonic() < ends:
            time.sleep(SOAK_S / 10)
            seen.append((anonymous_bytes(process.pid) or 0) >> 20)
        for thread in threads:
            thread.join(60)
        time.sleep(1)
        open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        answer = httpx.post(f"{url}{CHAT}", json=asked(QUESTION, data_url()), timeout=30)
        assert answer.json()["choices"][0]["message"]["content"] == "blueberries"
    with capsys.disabled():
        note(f"\nsoak: {sum(counts)} requests in {SOAK_S:.0f} s; MB: {seen}; files open: {open_files}")
    assert min(counts) > 0
    assert open_files < 40
    assert seen[-1] - seen[len(seen) // 2] < 16  # all pictures were seen by then
