"""What each preset means for one bundle on this machine's CPU, in bytes, accuracy and time."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.presets import PRESETS, Pair, choose_pair, no_pair, pairs
from tinyllava_edge.tuned import NUM_TOKENS, Tuned

from .registry import RUNTIMES, cpu_runtimes, targets


def preset_rows(bundle: Bundle, tuned: Tuned | None) -> list[dict[str, Any]]:
    """What each preset means for a bundle on this machine's CPU."""
    found = [
        pair
        for runtime in cpu_runtimes()
        if (read := targets(runtime)) is not None
        for pair in pairs(bundle, runtime, RUNTIMES[runtime], read, tuned)
    ]
    return [{"preset": preset, **_row(preset, found)} for preset in PRESETS]


def _row(preset: str, found: list[Pair]) -> dict[str, Any]:
    pair = choose_pair(preset, found)
    taken = pair or next(iter(found), None)
    if taken is None:
        return {"why": "no verified variant is read here"}
    return {
        **{key: value for key, value in asdict(taken).items() if key not in ("vision", "language", "passed")},
        "vision": taken.vision.name,
        "language": taken.language.name,
        "why": no_pair(preset, found) if pair is None else "",
    }


def preset_table(rows: list[dict[str, Any]]) -> Table:
    """Rows of `preset_rows` for people."""
    table = Table(box=None, pad_edge=False)
    for column in (
        "preset",
        "runtime",
        "vision",
        "language",
        "MB",
        "KL",
        "top-1",
        f"ms, {NUM_TOKENS} tokens",
    ):
        table.add_column(
            column, justify="left" if column in ("preset", "runtime", "vision", "language") else "right"
        )
    for row in rows:
        kld, top1, took = (row.get(key) for key in ("mean_kld", "top1_agreement", "request_ms"))
        table.add_row(
            row["preset"],
            row.get("runtime", "-"),
            row.get("vision", "-"),
            row.get("language", "-"),
            f"{row.get('size_bytes', 0) / 1e6:.1f}",
            "?" if kld is None else f"{kld:.2g}",
            "?" if top1 is None else f"{top1:.3f}",
            "?" if took is None else f"{took:.0f}",
        )
    return table
