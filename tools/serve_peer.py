"""`serve` beside llama-cpp-python's own server, on the same files and machine: `make serve-load`.

    python -m tools.serve_peer BUNDLE .peers/llama-cpp-server -o DIR

Both are up all the time, and loaded in turns, so that what else the machine does meets both: the closed loop
of `serve_load.py`, one round after the other. The peer has the bundle's own GGUF and mmproj behind its
handler `llava-1-5`, whose prompt has about as many tokens as ours and other words, so that its answers are
others (its `mtmd` hands the GGUF's template a list of parts, which that does not take). Two of its defaults
are changed, as `_peer` says. It counts no tokens: its pieces are.
"""

import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from PIL import Image

import tools
from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.benchmarks.bench.peers.peer_server import end, wait_for
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note
from tinyllava_edge.device import read_machine
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.runtimes.threads import thread_budget

from .serve_load import Sample, ask, bodies, closed_loop, summed_up, table

ROOT = Path(__file__).resolve().parents[1]
PICTURES = tuple(ROOT / "docs" / "pictures" / name for name in ("emoji.webp", "cat.jpg"))
OURS, PEER = "tinyllava-edge serve", "llama-cpp-python"
NAME = "model"
GRAMMAR = "root ::= [a-z ]{60,80}"  # so that all answers have a length
BOUNDS_MS = (500.0, 50.0)
# What its requests need so as to be greedy, as ours are: it divides by 1.1 what was said before.
_MORE: dict[str, dict[str, Any]] = {OURS: {}, PEER: {"repeat_penalty": 1.0}}


@contextmanager
def _ours(bundle: Path, language: str, threads: int) -> Iterator[str]:
    """The address of our server."""
    options = ("--language", language, "--threads", str(threads), "--port", "0", "--context", "1024")
    command = [sys.executable, "-m", "tinyllava_edge", "serve", str(bundle), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            while (line := process.stderr.readline()) and not (
                found := re.search(r"at (http://\S+)/v1", line)
            ):
                said = line
            if not line:
                raise BackendError(f"serve ended: {said.strip()}")
            assert found is not None
            yield found[1]
        finally:
            process.terminate()


@contextmanager
def _peer(home: Path, bundle: Path, language: Path, threads: int, log: Path) -> Iterator[str]:
    """The address of the peer's server.

    By default it would cut an answer when the next request comes, and keep the logits of every row.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "model": language,
        "clip_model_path": bundle / "mmproj.gguf",
        "chat_format": "llava-1-5",
        "model_alias": NAME,
        "n_ctx": 1024,
        "n_threads": threads,
        "n_threads_batch": threads,
        "interrupt_requests": False,
        "logits_all": False,
        "verbose": False,
        "host": "127.0.0.1",
        "port": port,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [str(home / "bin" / "python"), "-m", "llama_cpp.server", *words]
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True) as process,
    ):
        try:
            try:
                wait_for(url := f"http://127.0.0.1:{port}", process)
            except SystemExit as error:
                raise BackendError(f"{PEER}: {error}; its words are in {log}.") from None
            yield url
        finally:
            end(process)


async def _same_answers(urls: dict[str, str], names: dict[str, str], pictures: list[Path]) -> list[bool]:
    """Of each picture and question once, whether both say the same."""
    found = []
    async with httpx.AsyncClient(timeout=120) as client:
        for body in _distinct(pictures):
            texts = []
            for server, url in urls.items():
                wanted = {**body, "model": names[server], "stream": False, **_MORE[server]}
                del wanted["stream_options"]
                reply = await client.post(f"{url}/v1/chat/completions", json=wanted)
                texts.append(reply.json()["choices"][0]["message"]["content"].strip())
            found.append(len(set(texts)) == 1)
    return found


def _distinct(pictures: list[Path]) -> list[dict[str, Any]]:
    source, seen = bodies(NAME, pictures, 16, None, 1), dict[str, dict[str, Any]]()
    for _ in range(200):
        body = next(source)
        seen.setdefault(json.dumps(body), body)
    return list(seen.values())


async def _load(
    urls: dict[str, str],
    names: dict[str, str],
    pictures: list[Path],
    clients: list[int],
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """A row for each server and number of clients, of all rounds together."""
    samples: dict[tuple[int, str], list[Sample]] = defaultdict(list)
    spent: dict[tuple[int, str], float] = defaultdict(float)
    for number in range(rounds):
        for count in clients:
            for server in (OURS, PEER) if (number + count) % 2 else (PEER, OURS):
                source = bodies(names[server], pictures, 64, GRAMMAR, number, **_MORE[server])
                async with httpx.AsyncClient(base_url=urls[server], timeout=120) as client:
                    await ask(client, next(source))
                    began = time.perf_counter()
                    samples[count, server] += await closed_loop(client, source, count, seconds)
                    spent[count, server] += time.perf_counter() - began
        note(f"round {number + 1} of {rounds}")
    return [
        summed_up(f"{count} clients, {server}", samples[count, server], spent[count, server], BOUNDS_MS)
        for count in clients
        for server in (OURS, PEER)
    ]


def _as_png(folder: str) -> list[Path]:
    """Pictures that both read: llama.cpp's decoder has no WebP."""
    found = []
    for path in PICTURES:
        with Image.open(path) as image:
            found.append(Path(folder, f"{path.stem}.png"))
            image.convert("RGB").save(found[-1])
    return found


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle with an mmproj.")],
    peer: Annotated[Path, typer.Argument(help="The environment of make peers PEERS=llama-cpp-server.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for serve.json and serve.md.")],
    language: Annotated[str, typer.Option(help="Language variant.")] = "f16",
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,2,4,8",
    rounds: Annotated[int, typer.Option(help="Of all numbers, each server in turn.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="For each load of a round.", min=0.1)] = 10.0,
    threads: Annotated[int | None, typer.Option(help="Of each server.", min=1)] = None,
) -> None:
    """Measure both, and write a table and all figures."""
    opened = Bundle.open(bundle)
    if not (bundle / "mmproj.gguf").is_file():
        raise UsageError(f"{bundle}: no mmproj.gguf. Export it with --interchange mmproj.")
    gguf = opened.path(opened.variant("language", language, target="gguf").files[0])
    budget = thread_budget(threads)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pictures = _as_png(folder)
        urls = {
            OURS: stack.enter_context(_ours(bundle, language, budget)),
            PEER: stack.enter_context(_peer(peer, bundle, gguf, budget, output / "peer.log")),
        }
        names = {OURS: bundle.resolve().name, PEER: NAME}
        same = asyncio.run(_same_answers(urls, names, pictures))
        counts = [int(count) for count in clients.split(",")]
        rows = asyncio.run(_load(urls, names, pictures, counts, rounds, seconds))
    facts = {
        "bundle": bundle.name,
        "manifest_sha256": opened.manifest_sha256,
        "language": language,
        "threads": budget,
        "rounds": rounds,
        "seconds": seconds,
        "same_answers": f"{sum(same)} of {len(same)}",
        "machine": asdict(read_machine()),
        "rows": rows,
    }
    write_bytes(output / "serve.json", (json.dumps(facts, indent=1, default=str) + "\n").encode())
    text = (
        f"`{OURS}` and {PEER}'s own server on one machine, {language}, {budget} threads, loaded in turns: "
        f"{rounds} rounds of {seconds:g} s. Answers alike: {sum(same)} of {len(same)}. The same two "
        "pictures come again: ours knows them, the peer encodes each anew. Goodput: first token within "
        f"{BOUNDS_MS[0]:g} ms, others within {BOUNDS_MS[1]:g}.\n\n{table(rows)}"
    )
    write_bytes(output / "serve.md", text.encode())
    sys.stdout.write(text)


if __name__ == "__main__":
    tools.run(main)
