"""Load a server as people do: `python -m tools.serve_load http://127.0.0.1:8000 --clients 1,2,4,8`.

Closed loop: so many clients, each of which asks again as soon as it has its answer. Poisson: requests arrive
at a mean rate, whether the server is done or not, as from people who know nothing of each other. Times are
the client's: TTFT from sending a request to the first text, TPOT of the text after it, by the server's count
of tokens (of pieces where it counts none). Goodput counts the answers a second that kept both bounds.

Definitions: docs/sources/measuring.md#times-of-a-request.
"""

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tinyllava_edge.console import note, print_json

QUESTIONS = ("What is this?", "What colour is it?", "Is it alive?", "Can one eat it?")


@dataclass(frozen=True)
class Sample:
    """One request; an error has its status, 0 for a connection that broke or a stream that was cut."""

    status: int
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    total_s: float = 0.0
    tokens: int = 0


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Sample:
    """Send one request and read its stream."""
    began, first, pieces, is_whole = time.perf_counter(), 0.0, 0, False
    usage: dict[str, Any] = {}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return Sample(response.status_code)
            async for line in response.aiter_lines():
                is_whole = is_whole or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    return Sample(500)
                usage = chunk.get("usage") or usage
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    first, pieces = first or time.perf_counter(), pieces + 1
    except httpx.HTTPError:
        return Sample(0)
    if not is_whole:
        return Sample(0)
    ended = time.perf_counter()
    first, tokens = first or ended, usage.get("completion_tokens", pieces)  # some servers count none
    tpot_s = (ended - first) / (tokens - 1) if tokens > 1 else 0.0
    return Sample(200, first - began, tpot_s, ended - began, tokens)


def bodies(
    model: str, pictures: Sequence[Path], max_tokens: int, grammar: str | None, seed: int, **more: Any
) -> Any:
    """An endless row of requests: a picture and a question drawn at random, and other fields."""
    draw = random.Random(seed)
    urls = [f"data:image/{p.suffix[1:]};base64,{base64.b64encode(p.read_bytes()).decode()}" for p in pictures]
    while True:
        content: list[Any] = [{"type": "text", "text": draw.choice(QUESTIONS)}]
        if urls:
            content.append({"type": "image_url", "image_url": {"url": draw.choice(urls)}})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, **more}
        yield body | ({"grammar": grammar} if grammar else {})


async def closed_loop(client: httpx.AsyncClient, source: Any, clients: int, seconds: float) -> list[Sample]:
    """So many clients at a time, each without a pause; a refused one waits a tenth of a second."""
    ends, samples = time.perf_counter() + seconds, list[Sample]()

    async def one() -> None:
        while time.perf_counter() < ends:
            samples.append(await ask(client, next(source)))
            if samples[-1].status != 200:
                await asyncio.sleep(0.1)

    await asyncio.gather(*(one() for _ in range(clients)))
    return samples


async def poisson(client: httpx.AsyncClient, source: Any, rate: float, seconds: float) -> list[Sample]:
    """Requests that arrive `rate` a second on average, the times between them exponential."""
    draw, tasks = random.Random(rate), []
    ends, at = time.perf_counter() + seconds, time.perf_counter()
    while (at := at + draw.expovariate(rate)) < ends:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(client, next(source))))
    return list(await asyncio.gather(*tasks))


def percentile(values: Sequence[float], share: float) -> float:
    """Of some values, 0 of none; the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summed_up(
    load: str, samples: Sequence[Sample], spent_s: float, bounds_ms: tuple[float, float]
) -> dict[str, Any]:
    """One row of the table."""
    good = [sample for sample in samples if sample.status == 200]
    kept = sum(s.ttft_s * 1000 <= bounds_ms[0] and s.tpot_s * 1000 <= bounds_ms[1] for s in good)
    errors = Counter(str(sample.status) for sample in samples if sample.status != 200)
    row: dict[str, Any] = {"load": load, "requests": len(samples), "errors": dict(errors)}
    for name in ("ttft", "tpot"):
        values = [1000 * getattr(sample, f"{name}_s") for sample in good]
        row |= {f"{name}_p50_ms": percentile(values, 0.5), f"{name}_p95_ms": percentile(values, 0.95)}
    row["answers_per_s"] = len(good) / spent_s
    row["goodput_per_s"] = kept / spent_s
    row["tokens_per_s"] = sum(sample.tokens for sample in good) / spent_s
    return row


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, each for so many seconds after one request that warms up."""
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=200)
    rows = []
    async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=120, limits=limits) as client:
        source = bodies(options.model, options.pictures, options.max_tokens, options.grammar, options.seed)
        await ask(client, next(source))
        loads: list[tuple[str, float]] = []
        loads += [("closed", int(n)) for n in options.clients.split(",")] if options.clients else []
        loads += [("poisson", float(rate)) for rate in options.rates.split(",")] if options.rates else []
        for kind, amount in loads:
            began = time.perf_counter()
            run: Any = closed_loop if kind == "closed" else poisson
            samples = await run(client, source, amount, options.seconds)
            name = f"closed loop, {amount}" if kind == "closed" else f"Poisson, {amount:g} a second"
            bounds_ms = (options.ttft_ms, options.tpot_ms)
            rows.append(summed_up(name, samples, time.perf_counter() - began, bounds_ms))
            note(f"{name}: {len(samples)} requests")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    names = [name for name in rows[0] if name not in ("load", "requests", "errors")]
    lines = [["load", "requests", *(name.replace("_", " ") for name in names), "errors"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        errors = ", ".join(f"{count} of {status}" for status, count in row["errors"].items()) or "0"
        lines.append([row["load"], str(row["requests"]), *(f"{row[name]:.2f}" for name in names), errors])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Measure; the table goes to standard output, or all of it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.serve_load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--clients", default="1,2,4,8", help="of the closed loop")
    parser.add_argument("--rates", default="", help="requests a second, for Poisson arrivals")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each load")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--grammar", help="of the answers, so that all have a length")
    parser.add_argument("--ttft-ms", type=float, default=500.0, help="the bound of goodput")
    parser.add_argument("--tpot-ms", type=float, default=50.0, help="likewise")
    parser.add_argument("--api-key")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(measure(options))
    if options.json:
        print_json({"url": options.url, "seconds": options.seconds, "rows": rows})
    else:
        sys.stdout.write(table(rows))


if __name__ == "__main__":
    main()
