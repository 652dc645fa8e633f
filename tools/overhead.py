"""What a change of ours saves, in fresh processes, interleaved, with the old way twice as the control.

    python -m tools.overhead BUNDLE                      opening, first question, GELU of the vision graph
    python -m tools.overhead BUNDLE --builds OLD NEW     two folders of llama.cpp's libraries (llama_cpp/lib)

A ratio below 1 is the new way faster; the control says how far two equal ways were apart.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.prompt import TextTokenizer
from tinyllava_edge.runtimes import registry
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle

CELLS = ("old", "old again", "new")
_REPEATS, _PROMPT, _TOKENS = 3, 512, 16


def opening(bundle: Bundle, is_new: bool) -> float:
    """Both backends and the tokenizer, one after the other or side by side."""
    if not is_new:
        registry.opens_side_by_side = lambda *_: False
    start = time.perf_counter()
    open_bundle(bundle, runtime=registry.CPU_RUNTIME).close()
    return time.perf_counter() - start


def question(bundle: Bundle, is_new: bool) -> float:
    """The ids of a first question, with the second tokenizer or without."""
    if not is_new:
        TextTokenizer._has_only_marks = lambda *_: False  # type: ignore[method-assign]
    tokenizer = TextTokenizer(bundle.read_text("tokenizer.json"), bos_id=None, checked=True)
    start = time.perf_counter()
    tokenizer.encode(bundle.manifest.prompt.template, [("What is this?", None)], honour_special=False)
    return time.perf_counter() - start


def gelu(bundle: Bundle, is_new: bool) -> float:
    """A picture through each ONNX graph, with the half of GELU on the sum (as torch writes it) or on x."""
    import onnx
    import onnxruntime

    from tinyllava_edge.runtimes.ort import session_options

    path = bundle.path(bundle.variant("vision", None).files[0])
    graph = onnx.load(path)
    move_halves(graph, onto_x=is_new)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), session_options(os.cpu_count() or 1))
    size = bundle.manifest.vision.image_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    return _best(lambda: session.run(None, {"pixels": pixels}))


def builds(bundle: Bundle, is_new: bool) -> float:
    """A prompt and some tokens through llama.cpp; which libraries is in the environment."""
    language = registry.language_opener("llamacpp")(bundle, BackendOptions())
    rows = min(_PROMPT, language.context_length - _TOKENS)
    ids = np.random.default_rng(0).integers(5, language.vocab_size, rows).astype(np.int32)

    def ask() -> None:
        language.truncate(0)
        language.evaluate(ids, 0)
        for number in range(_TOKENS):
            language.evaluate(ids[:1], rows + number)
            language.last_logits()

    return _best(ask)


def move_halves(graph: Any, *, onto_x: bool) -> None:
    """Write every GELU of a graph as x/2 * (1 + f(x)), or as x * ((1 + f(x)) / 2)."""
    nodes = {output: node for node in graph.graph.node for output in node.output}
    for last in [node for node in graph.graph.node if node.op_type == "Mul"]:
        for half, other in (last.input, reversed(last.input)):
            inner = nodes.get(half)
            if inner is None or inner.op_type != "Mul":
                continue
            sums = [i for i in (*inner.input, other) if i in nodes and _is_one_plus(nodes, nodes[i])]
            factor = [i for i in inner.input if i not in nodes]
            if len(sums) == len(factor) == 1:
                (x,) = ({*inner.input} | {other}) - {*sums, *factor}
                inner.input[:] = [x if onto_x else sums[0], factor[0]]
                last.input[:] = [half, sums[0] if onto_x else x]
                graph.graph.node.remove(inner)
                place = next(k for k, node in enumerate(graph.graph.node) if half in node.input)
                graph.graph.node.insert(place, inner)
                nodes[half] = graph.graph.node[place]
                break


def _is_one_plus(nodes: dict[str, Any], node: Any) -> bool:
    return node.op_type == "Add" and any(
        i in nodes and nodes[i].op_type in ("Erf", "Tanh") for i in node.input
    )


def _best(job: Any) -> float:
    """Seconds of the fastest of some calls, after one that counts for nothing."""
    job()
    spent = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        job()
        spent.append(time.perf_counter() - start)
    return min(spent)


JOBS = {job.__name__: job for job in (opening, question, gelu, builds)}


def compare(name: str, bundle: str, rounds: int, folders: tuple[Path, Path] | None) -> str:
    """One line: medians in ms, and the ratios of each round to the old way's."""
    spent: dict[str, list[float]] = {cell: [] for cell in CELLS}
    for _ in range(rounds):
        for cell in random.sample(CELLS, len(CELLS)):
            is_new = cell == "new"
            own = {"LLAMA_CPP_LIB_PATH": str(folders[is_new].resolve())} if folders else {}
            command = [sys.executable, "-m", "tools.overhead", bundle, "--sample", name, *["--new"][:is_new]]
            said = subprocess.run(
                command, env={**os.environ, **own}, capture_output=True, text=True, check=True
            )
            spent[cell].append(float(said.stdout.split()[-1]))
    ratios = {c: [a / b for a, b in zip(spent[c], spent["old"], strict=True)] for c in CELLS[1:]}
    texts = [f"{c} {statistics.median(r):.2f} [{min(r):.2f}-{max(r):.2f}]" for c, r in ratios.items()]
    return f"{name}: old {1000 * statistics.median(spent['old']):.1f} ms; ratios {', '.join(texts)}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--builds", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--new", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        sys.stdout.write(f"{JOBS[options.sample](Bundle.open(bundle_path(options.bundle)), options.new)}\n")
        return
    for name in ["builds"] if options.builds else ["opening", "question", "gelu"]:
        sys.stdout.write(f"{compare(name, options.bundle, options.rounds, options.builds)}\n")


if __name__ == "__main__":
    main()
