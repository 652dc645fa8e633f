"""What came of an evaluation: its line of JSON, and its table for people."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tinyllava_edge.console import note, stdout

from .evaluation import Evaluation
from .public_sets import PUBLIC_SETS
from .scores import count_pictures


def summary(run: Evaluation, bundle: str, shard: str | None) -> dict[str, Any]:
    """The line of JSON of a run that has ended (docs/json.md); arguments as they were given."""
    results, benchmark = run.results(), run.asked.benchmark
    return {
        **{key: value for key, value in results[0].items() if key != "name"},
        "bundle": bundle,
        "manifest_sha256": run.bundle.manifest_sha256,
        "benchmark": benchmark,
        "as_published": run.asked.as_published,
        "judged_by": (PUBLIC_SETS[benchmark].judge or None) if benchmark else None,
        "shard": shard,
        "blind": bool(run.blind),
        "images": count_pictures(run.kept),
        **run.faults(),
        "variants": results,
    }


def print_results(result: dict[str, Any]) -> None:
    """A row for each variant, and what the figures are of."""
    if result["rule"] is not None:
        _print(result["variants"], result["benchmark"])
    asked = result.get("asked", result.get("questions", result["unscored"]))
    note(f"{asked} questions about {result['images']} pictures; 95 % intervals over pictures")
    _say_rule(result)


def _print(results: list[dict[str, Any]], benchmark: str | None) -> None:
    if benchmark is not None:
        table = Table("variant", benchmark, "accuracy", "questions", "difference from first")
        for result in results:
            unit = "" if result["rule"] == "mme" else " %"
            amount = f"{result['asked']} of {result['of']}"
            accuracy = interval_text(result["accuracy"], result["ci95"])
            table.add_row(
                result["name"], f"{result['score']:.1f}{unit}", accuracy, amount, _against(result)[1]
            )
        stdout.print(table)
        return
    kinds = list(results[0]["types"])
    is_blind = results[0]["blind_accuracy"] is not None
    table = Table("variant", "accuracy", *kinds, *["blind"] * is_blind, "agrees with first", "difference")
    for result in results:
        table.add_row(
            result["name"],
            interval_text(result["accuracy"], result["ci95"]),
            *(
                interval_text(value["accuracy"], value["ci95"])
                + (f" blind {result['blind_types'][kind]:.3f}" if is_blind else "")
                for kind, value in result["types"].items()
            ),
            *([f"{result['blind_accuracy']:.3f}"] if is_blind else []),
            *_against(result),
        )
    stdout.print(table)


def _against(result: dict[str, Any]) -> tuple[str, str]:
    """Agreement with the first variant, and the difference from it with the exact test's p."""
    against = result.get("against_first")
    if against is None:
        return "", ""
    difference = interval_text(against["difference"], against["difference_ci95"], "+.3f")
    return f"{against['agreement']:.3f}", f"{difference}, p {against['mcnemar']['p']:.3g}"


def _say_rule(result: dict[str, Any]) -> None:
    if result["rule"] is not None:
        note(f"right is, by rule {result['rule']}: {result['right_is']}")
    if result["unscored"] and result["judged_by"]:
        note(f"{result['unscored']} answers are not scored here, but by {result['judged_by']}: --submission")
    elif result["unscored"]:
        note(f"{result['unscored']} have no expected answer and no score; --references FILE gives them one")
    if unparsed := result.get("figures", result).get("unparsed"):
        note(f"{unparsed} answers name nothing that the rule reads, which counts as wrong")
    if guessed := result.get("figures", result).get("guessed"):
        note(f"{guessed} answers name no choice, which counts as a draw of one")


def interval_text(value: float, interval: Sequence[float], form: str = ".3f") -> str:
    """A figure with its interval in brackets."""
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
