"""The page of what was measured, from its JSON."""

from collections.abc import Iterable
from typing import Any

from tinyllava_edge.benchmarks.bench.ratios import paired_ratio
from tinyllava_edge.bounds import first_fault
from tinyllava_edge.presets import BOUND

from .accuracy import CALIBRATED, JUDGED
from .graphs import KINDS
from .speed import ROWS, SHAPES

BASE = "openvino-int8"
Record = dict[str, Any]


def page(result: Record) -> list[str]:
    """Markdown of whatever `result` has."""
    lines = [
        "# Integers of ONNX Runtime for prefill", "",
        "Written by `python -m tools.ort_int8`; what it means: "
        "[source](../../docs/sources/measuring.md#integers-in-onnx-runtime).", "",
        *[f"- {kind}: {words}" for kind, words in KINDS.items()], "",
    ]  # fmt: skip
    if "accuracy" in result:
        lines += _accuracy(result["accuracy"])
    if "speed" in result:
        lines += _speed(result["speed"])
    return lines


def _accuracy(found: Record) -> list[str]:
    lines = [
        f"## Accuracy of {found['checkpoint']}", "",
        f"Against torch in float32 ({_versions(found)}), by the [presets'](../../docs/presets.md) bound.", "",
    ]  # fmt: skip
    for on, words in (
        (CALIBRATED, "Prompts on which alpha is chosen (+)"),
        (JUDGED, "Judged, prompts of `verify`"),
    ):
        rows = [row for row in found["rows"] if row["on"] == on]
        lines += [f"{words}: {rows[0]['tokens']} tokens of answers.", ""]
        lines += _table(
            ("prompt", "answer", "alpha", "mean KL, nats", "99 %", "top-1", "within the bound"),
            (
                (
                    row["prefill"], row["decode"] or "as the prompt",
                    f"{row['alpha'] or '-'}{' +' * row['is_chosen']}",
                    f"{row['mean_kld']:.2g}", f"{row['p99_kld']:.2g}", f"{row['top1_agreement']:.3f}",
                    first_fault(BOUND, row) or "yes",
                )
                for row in rows
            ),
        )  # fmt: skip
    return lines


def _speed(found: Record) -> list[str]:
    machine = found["machine"]
    lines = [
        "## Speed", "",
        f"All products of one layer, {ROWS} rows: {machine['cpu']['model']}, {_versions(found)}. {BASE} "
        "reads and writes float32 here, which between layers is bfloat16: that is in its times.", "",
    ]  # fmt: skip
    for shape, sessions in found["times_ms"].items():
        lines += [f"### {shape}, {SHAPES[shape][-1]} layers", ""]
        base = [session[BASE] for session in sessions]
        rows = []
        for name in sessions[0]:
            cell = [session[name] for session in sessions]
            every = sorted(ms for blocks in cell for block in blocks for ms in block)
            ratio = paired_ratio(base, cell)
            assert ratio is not None
            of_base = f"{1 / ratio.ratio:.2f} [{1 / ratio.high:.2f}-{1 / ratio.low:.2f}]"
            rows.append((name, f"{every[len(every) // 2]:.2f}", of_base))
        lines += _table(("products", "ms, median", f"of {BASE} [95 %]"), rows)
    return lines


def _versions(found: Record) -> str:
    versions = found["machine"]["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "openvino", "llama-cpp-python"))


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    lines = [list(head), *[list(map(str, row)) for row in rows]]
    marks = ["---"] + ["--:"] * (len(lines[0]) - 1)
    return [f"| {' | '.join(line)} |" for line in (lines[0], marks, *lines[1:])] + [""]
