"""Released checkpoints, what was published of them, and the bounds that were set before any run.

The page docs/released.md is `page_lines`; sources: docs/sources/tinyllava.md#published-scores. A figure or a
bound is changed only in a commit of its own, and never after a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REGISTERED = "2026-11-30"
SCORED = ("pope", "textvqa")  # the fields of `Released` with published figures
FP16_WITHIN = 0.3  # points of the published score, float16 tower and language model
Q4_WITHIN = 1.0  # points of accuracy of float16's own answers, question by question
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Released:
    """One checkpoint of the hub; a score is None where none was published."""

    repository: str
    pope: float | None = None  # mean F1 of the three splits, in per cent
    textvqa: float | None = None  # accuracy with OCR tokens in the prompt, in per cent
    note: str = ""


RELEASED = (
    Released(
        repository="tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B", pope=87.2, textvqa=60.3, note="recipe share"
    ),
    Released(repository="tinyllava/TinyLLaVA-Gemma-SigLIP-2.4B", pope=86.4, textvqa=53.6),
    Released(repository="jiajunlong/TinyLLaVA-0.89B", pope=85.4, textvqa=44.0, note="OpenELM-450M"),
    Released(repository="Zhang199/TinyLLaVA-Qwen2-0.5B-SigLIP", pope=86.6, textvqa=45.2),
    Released(repository="Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP", pope=87.4, textvqa=58.3),
    Released(repository="bczhou/TinyLLaVA-3.1B", pope=86.4, textvqa=59.1, note="TinyLLaVABench"),
    Released(repository="bczhou/TinyLLaVA-2.0B", textvqa=56.4, note="TinyLLaVABench"),
    Released(repository="bczhou/TinyLLaVA-1.5B", textvqa=51.7, note="TinyLLaVABench"),
)


def judged(name: str, released: Released, result: Mapping[str, Any]) -> Iterator[Record]:
    """What each variant's figures are beside the bounds.

    Args:
        name: of the set.
        released: the checkpoint.
        result: what `eval --json` printed; the first variant is float16's.

    Yields:
        `variant`, `bound`, `difference` in points (None where nothing was published), its `ci95` where it is
        paired, and `verdict`: within, outside, or why nothing is said.
    """
    first, *others = result["variants"]
    published = getattr(released, name)
    why = _unjudged(first, result)
    difference = None if published is None else first["score"] - published
    verdict = "nothing published" if difference is None else why or _within(difference, FP16_WITHIN)
    yield {
        "variant": first["name"], "bound": FP16_WITHIN, "published": published, "score": first["score"],
        "difference": difference, "ci95": None, "verdict": verdict,
    }  # fmt: skip
    for other in others:
        paired = other["against_first"]
        points, interval = 100 * paired["difference"], [100 * end for end in paired["difference_ci95"]]
        is_q4 = (other["language"] or "").startswith("q4")
        verdict = (why or _within(points, Q4_WITHIN)) if is_q4 else "no bound was set"
        yield {
            "variant": other["name"], "bound": Q4_WITHIN if is_q4 else None, "published": None,
            "score": other["score"], "difference": points, "ci95": interval, "verdict": verdict,
        }  # fmt: skip


def _within(difference: float, bound: float) -> str:
    return "within" if abs(difference) <= bound else "outside"


def _unjudged(first: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if first["subset"]:
        return "a part of the set"
    if not result["as_published"]:
        return "another version of the set"
    if (first["vision"], first["language"]) != ("fp16", "f16"):
        return "the first variant is not fp16 + f16"
    return ""


def page_lines() -> Sequence[str]:
    """The table of docs/released.md."""

    def shown(score: float | None) -> str:
        return "none found" if score is None else f"{score:.1f}"

    rows = [f"| {r.repository} | {shown(r.pope)} | {shown(r.textvqa)} | {r.note} |" for r in RELEASED]
    return ["| checkpoint | POPE, mean F1 | TextVQA | |", "|---|---:|---:|---|", *rows]
