"""Measured figures beside the registered ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllava_edge.boards import BOARDS
from tinyllava_edge.device import Machine

from .expectations import expected_figures, read_expectations

Record = dict[str, Any]
_PARAMETERS_APART = 0.01  # of a model's, for it to be called the same


def registered_board(machine: Machine) -> str | None:
    """The board of the data that this machine is: by its module's number, or its card's name."""
    module = machine.jetson.module if machine.jetson else None
    cards = [gpu.split(",")[0].strip() for gpu in machine.gpus]
    for name, board in read_expectations()["boards"].items():
        if set(board["known_by"]) & {module, *cards}:
            return str(name)
    return None


def registered_model(bundle: Record) -> str | None:
    """The model of the data that a bundle in a bench's record is, by its size and its picture's tokens."""
    data = read_expectations()
    found = bundle["parameters"]["language_model"]
    for name, model in data["models"].items():
        expected = model["language_parameters"]
        same_size = abs(found - expected) <= _PARAMETERS_APART * expected
        if same_size and bundle["tokens_per_picture"] == data["prompt"]["picture_tokens"]:
            return str(name)
    return None


def measured_figures(cell: Record) -> dict[str, float | None]:
    """Of a row of a bench, what the data has a figure for, in its units."""
    warm, peak = cell["warm"], cell.get("device_peak_bytes")
    return {
        "tower": warm["stages_ms"]["vision"],
        "prefill": warm["stages_ms"]["prefill"],
        "first_token": warm["first_token_ms"],
        "decode": warm["tokens_per_second"],
        "peak": None if peak is None else peak / 1e6,
    }


def judged(folder: Path, machine: Machine) -> Iterator[Record]:
    """Each row of each bench with Q4_K_M against its registered figures, and why another one has none."""
    board = registered_board(machine)
    for path in sorted(folder.glob("bench-*/report.json")):
        record = json.loads(path.read_bytes())
        models = {bundle["name"]: registered_model(bundle) for bundle in record["bundles"]}
        for cell in record["cells"]:
            if cell["name"] == record["control"]:
                continue
            model = models[cell["model"]]
            row: Record = {"bench": path.parent.name, "cell": cell["name"], "runtime": cell["runtime"]}
            row["measured"] = measured_figures(cell)
            row["energy"] = cell.get("energy")
            row["figures"], row["why_none"] = [], _why_none(board, model, cell)
            if board and model and not row["why_none"]:
                row["figures"] = list(_compared(board, model, row["measured"]))
            yield row


def _why_none(board: str | None, model: str | None, cell: Record) -> str:
    if board is None:
        known = ", ".join(BOARDS[name].title for name in read_expectations()["boards"])
        return f"this machine is none of those with registered figures ({known})"
    if model is None:
        return "no figures are registered for this model"
    if not cell["runtime"].startswith("tensorrt") or (cell["vision"], cell["language"]) != ("fp16", "q4_k_m"):
        return "figures are registered for vision fp16 by TensorRT, and language q4_k_m"
    return ""


def _compared(board: str, model: str, measured: dict[str, float | None]) -> Iterator[Record]:
    for figure in expected_figures(board, model):
        value = measured[figure.key]
        yield {
            **vars(figure),
            "measured": value,
            "share_of_roof": None if value is None else figure.share_of_roof(value),
            "verdict": "not measured" if value is None else figure.verdict(value),
        }
