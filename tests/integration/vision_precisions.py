"""Every vision precision on real weights: SNR, worst token, largest activation, what stayed float, CPU time.

python -m tests.integration.vision_precisions            (downloads 90 MB, takes minutes)
python -m tests.integration.vision_precisions --onnx FILE --size 518 --json

Random weights lack the outliers that decide these figures, so they are drawn from a real ViT (`dinov2.py`).
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.integration.dinov2 import write_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note, print_json
from tinyllava_edge.export import int8
from tinyllava_edge.export.calibration import calibration_pixels
from tinyllava_edge.export.onnx_file import write_vision_graph
from tinyllava_edge.export.parity import VisionTrial, vision_trial
from tinyllava_edge.export.reference import PICTURES, PICTURES_FOLDER
from tinyllava_edge.export.vision_onnx import build_vision_graph
from tinyllava_edge.export.vision_variants import VisionSource, write_variant
from tinyllava_edge.image import Preprocessing, open_picture, preprocess
from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.precisions import PRECISIONS
from tinyllava_edge.runtimes.ort import PROVIDERS, session_options
from tools.dinov2 import download_onnx

# Not among those that int8 is fitted to: photographs, and a drawing.
HELD_OUT = Path(__file__).parents[2] / "docs" / "pictures"
RUNS = 15
# TensorRT's scheme on this CPU: only timed, to say why the CPU has its own.
SYMMETRIC = "int8, activations around zero"


def measure(onnx_file: Path, *, image_size: int, calibration: Path | None = None) -> list[dict[str, Any]]:
    """One row for each of `PRECISIONS`; raises ExportError where one misses its gate."""
    with TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(onnx_file, Path(folder) / "checkpoint", image_size=image_size)
        model = load_model(Checkpoint(checkpoint))
        how = read_assets(Checkpoint(checkpoint)).preprocessing
        trial = held_out_trial(model, how)
        graph = build_vision_graph(model, image_size)
        del model
        source = VisionSource(graph, trial, calibration_pixels(calibration, how))
        largest = max(value.largest for value in source.ranges if not value.harmless)
        rows, paths = [], {}
        for name in PRECISIONS:
            path = Path(folder) / f"{name}.onnx"
            _, status, report = write_variant(name, path, source)
            if status == "verified":
                paths[name] = path
            figures = report.get("rounded") or report["onnxruntime"]
            rows.append(
                {
                    "precision": name,
                    "snr_db": figures["snr_db"],
                    "min_token_cosine": figures["min_token_cosine"],
                    "mean_token_cosine": figures["mean_token_cosine"],
                    "largest": report.get("largest", largest),
                    "islands": len(report.get("islands", ())),
                    "kept_layers": len(report.get("kept_layers", ())),
                    "megabytes": path.stat().st_size / 1e6,
                    "judged_by": "rounding every value" if "rounded" in report else "ONNX Runtime",
                }
            )
        symmetric = int8.to_int8(graph, source.linear_inputs, int8.TENSORRT)
        (paths[SYMMETRIC],) = write_vision_graph(Path(folder) / "symmetric.onnx", symmetric)
        times = measure_times(paths, trial.pixels[:1])
    for row in rows:
        mine = times.get(row["precision"])
        row["latency_ms"] = None if mine is None else mine
        row["speed"] = None if mine is None else times["fp32"] / mine
    mine = times[SYMMETRIC]
    rows.append({"precision": SYMMETRIC, "latency_ms": mine, "speed": times["fp32"] / mine})
    return rows


def held_out_trial(model: TinyLlava, how: Preprocessing) -> VisionTrial:
    """The bundle's reference pictures and README's, as torch sees them."""
    files = [PICTURES_FOLDER / name for name in PICTURES]
    files += sorted(path for path in HELD_OUT.iterdir() if path.suffix != ".md")
    pixels = np.stack([preprocess(open_picture(path), how) for path in files])
    return vision_trial(model, pixels)


def measure_times(paths: dict[str, Path], pixels: npt.NDArray[np.float32]) -> dict[str, float]:
    """Median latency in ms of each graph on one CPU thread, run in turns so that drift hits all alike."""
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(str(path), session_options(1), providers=PROVIDERS)
        for name, path in paths.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(RUNS + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run([EMBEDDINGS], {PIXELS: pixels})
            samples[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(times[1:])) for name, times in samples.items()}


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows for people, as Markdown."""
    note("| precision | SNR dB | worst token | mean token | largest | islands | float layers | MB | speed |")
    note("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        if row["precision"] == SYMMETRIC:
            note(f"\n{SYMMETRIC}: {row['speed']:.2f} ({row['latency_ms']:.0f} ms)")
            continue
        speed = "not run" if row["speed"] is None else f"{row['speed']:.2f} ({row['latency_ms']:.0f} ms)"
        note(
            f"| {row['precision']} | {row['snr_db']:.1f} | {row['min_token_cosine']:.4f} | "
            f"{row['mean_token_cosine']:.5f} | {row['largest']:.0f} | {row['islands']} | "
            f"{row['kept_layers']} | {row['megabytes']:.1f} | {speed} |"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--onnx", type=Path, help="vit_s_focus.onnx, where it is here already")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--calibration", type=Path, help="directory of pictures for int8")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = options.onnx or download_onnx(Path(folder))
        rows = measure(path, image_size=options.size, calibration=options.calibration)
    if options.json:
        print_json({"image_size": options.size, "rows": rows})
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
