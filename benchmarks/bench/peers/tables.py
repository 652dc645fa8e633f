"""Rivals' part of a report: rows of text, and what is said beside them."""

from collections.abc import Iterator, Sequence
from typing import Any

from .rows import METRICS

Record = dict[str, Any]
Row = dict[str, str]


def rival_tables(record: Record) -> Iterator[tuple[str, Sequence[Row]]]:
    """Titles and rows of what there is of rivals in a comparison's record."""
    rivals = record.get("rivals") or {"rows": [], "ratios": []}
    if rivals["rows"]:
        yield "Rivals", [_row(row) for row in rivals["rows"]]
        yield (
            "How near they and we are to the reference",
            [_accuracy_row(*one) for one in _accuracies(rivals)],
        )
    if rivals["ratios"]:
        yield "Time of ours over theirs", list(_ratio_rows(rivals["ratios"]))


def rival_notes(record: Record) -> Iterator[str]:
    """What the tables mean, what each rival cannot match, and which were not measured."""
    if not (rivals := record.get("rivals")):
        return
    if rivals["rows"]:
        yield (
            "*KL*, *top-1* of rivals, and of ours beside them: against "
            f"{rivals['reference']}, on its greedy tokens, which are given to every row."
        )
        yield (
            "*ours / theirs*: time of one over the other's, with the 95 % interval of neighbouring pairs; "
            f"below 1 ours is faster. {_claim(record)}"
        )
    for row in rivals["rows"]:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        yield f"{row['name']}: {versions}; {row['library'].strip(' |')}; {row['threads']} threads."
        yield f"{row['name']} cannot match: {'; '.join(row['cannot_match'])}."
        if not row["warm"]["same_answer_every_run"]:
            yield f"{row['name']}: the answer was not the same in every run."
    yield from (f"{one['name']}: NOT MEASURED: {one['why']}" for one in rivals["absent"])


def _row(row: Record) -> Row:
    warm, cached = row["warm"], row["cached"]
    return {
        "rival": row["name"],
        "MB": f"{row['size_bytes'] / 1e6:.1f}",
        "load warm s": f"{row['load_warm_s']:.2f}",
        "first request": f"{row['first_request_ms']:.1f}",
        "vision": _number(warm["stages_ms"]["vision"]),
        "prefill": _number(warm["stages_ms"]["prefill"]),
        "first token": _number(warm["first_token_ms"]),
        "per token": f"{warm['token_ms']:.2f}",
        "end to end": f"{warm['total_ms']:.1f} +- {warm['total_ms_deviation']:.1f}",
        "positions": str(warm["prompt_tokens"]),
        "second question": _number(cached and cached["total_ms"]),
        "its first token": _number(cached and cached["first_token_ms"]),
        "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}",
    }


def _accuracies(rivals: Record) -> Iterator[tuple[str, Record]]:
    """Of the bundle's own rows first."""
    yield from rivals["accuracy"].items()
    yield from ((row["name"], row["accuracy"]) for row in rivals["rows"] if row["accuracy"])


def _accuracy_row(name: str, accuracy: Record) -> Row:
    same = accuracy["same_tokens"]
    return {
        "row": name,
        "KL": _number(accuracy["mean_kld"], ".1e"),
        "top-1": _number(accuracy["top1_agreement"], ".3f"),
        "same greedy tokens": "-" if same is None else f"{same} of {accuracy['tokens']}",
    }


def _ratio_rows(ratios: Sequence[Record]) -> Iterator[Row]:
    found = {(ratio["cell"], ratio["rival"], ratio["metric"]): ratio for ratio in ratios}
    for cell, rival in dict.fromkeys((ratio["cell"], ratio["rival"]) for ratio in ratios):
        shown = {METRICS[metric][0]: _interval(found.get((cell, rival, metric))) for metric in METRICS}
        yield {"ours / theirs": f"{cell} / {rival}", **shown}


def _claim(record: Record) -> str:
    passed = record["control_passed"].values()
    if record.get("quick") or not passed or not all(passed):
        return "The A/A control allows no claim."
    return "The A/A control includes 1."


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _interval(ratio: Record | None) -> str:
    return "-" if ratio is None else f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
