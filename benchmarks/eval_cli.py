"""The command `tinyllava-edge eval`."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.embedded import bundle_path
from tinyllava_edge.output import check_output
from tinyllava_edge.runtimes.registry import DEFAULT_RUNTIME


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or nano.")],
    questions: Annotated[
        Path, typer.Option(help="LLaVA JSON, or a list of {image, question, answer, type}.")
    ],
    images: Annotated[Path, typer.Option(help="Folder that the image paths are relative to.")],
    runtime: Annotated[str, typer.Option(help="Runtime.")] = DEFAULT_RUNTIME,
    vision: Annotated[str | None, typer.Option(help="Vision variant.")] = None,
    language: Annotated[
        str, typer.Option(help="Language variants, comma-separated; the best by default.")
    ] = "",
    checkpoint: Annotated[str | None, typer.Option(help="Where the weights are, for runtime torch.")] = None,
    sources: Annotated[
        Path | None, typer.Option(help="Where files are that the checkpoint only names, for runtime torch.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights.")] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Show mid-grey instead of the pictures.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Write every answer to this JSONL file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the answers file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print only the line of JSON.")] = False,
) -> None:
    """Score short answers by exact match, with the blind score beside; the last line is JSON."""
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.runtimes.engine import open_bundle

    from .quality import ask_all, compare, score
    from .questions import read_questions

    if answers is not None:
        check_output(answers, force=force)
    asked = read_questions(questions, images)
    opened = Bundle.open(bundle_path(bundle))
    names = [name.strip() for name in language.split(",") if name.strip()]
    variants = [opened.variant("language", name or None).name for name in names or [""]]
    runs = [(name, shown) for name in variants for shown in ((True,) if blind else (False, True))]
    found: dict[tuple[str, bool], list[str]] = {}
    with progress() as bar:
        task = bar.add_task("eval", total=len(asked) * len(runs))
        for name in variants:
            with open_bundle(
                bundle,
                runtime=runtime,
                vision=vision,
                language=name,
                checkpoint=checkpoint,
                sources=sources,
                allow_pickle=allow_pickle,
                threads=threads,
            ) as model:
                for _, is_blind in (run for run in runs if run[0] == name):
                    found[name, is_blind] = ask_all(
                        model,
                        asked,
                        blind=is_blind,
                        max_tokens=max_tokens,
                        on_answer=lambda: bar.advance(task),
                    )
    results = []
    for name in variants:
        scores = score(asked, found[name, blind])
        blind_scores = score(asked, found[name, True])
        result: dict[str, Any] = {"language": name, **scores.pop("all").to_json()}
        result["types"] = {kind: value.to_json() for kind, value in scores.items()}
        result["blind_accuracy"] = blind_scores.pop("all").accuracy
        result["blind_types"] = {kind: value.accuracy for kind, value in blind_scores.items()}
        if name != variants[0]:
            result["against_first"] = compare(asked, found[variants[0], blind], found[name, blind])
        results.append(result)
    summary = {
        **{key: value for key, value in results[0].items() if key != "against_first"},
        "bundle": str(bundle),
        "runtime": runtime,
        "vision": vision or opened.variant("vision").name,
        "blind": blind,
        "images": len({question.image for question in asked}),
        "variants": results,
    }
    if answers is not None:
        lines = [
            {
                "id": q.id,
                "type": q.type,
                "question": q.text,
                "expected": q.answer,
                "language": name,
                "answer": a,
            }
            for name in variants
            for q, a in zip(asked, found[name, blind], strict=True)
        ]
        answers.write_text("".join(json_module.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if not json:
        _print(results)
        note(f"{len(asked)} questions about {summary['images']} pictures; 95 % intervals over pictures")
    print_json(summary)


def _print(results: list[dict[str, Any]]) -> None:
    kinds = list(results[0]["types"])
    table = Table("variant", "accuracy", *kinds, "blind", "agrees with first", "difference")
    for result in results:
        against = result.get("against_first")
        table.add_row(
            result["language"],
            _interval(result),
            *(f"{_interval(result['types'][k])} blind {result['blind_types'][k]:.3f}" for k in kinds),
            f"{result['blind_accuracy']:.3f}",
            "" if against is None else f"{against['agreement']:.3f}",
            "" if against is None else f"{against['difference']:+.3f}",
        )
    stdout.print(table)


def _interval(value: dict[str, Any]) -> str:
    low, high = value["ci95"]
    return f"{value['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
