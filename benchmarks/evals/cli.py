"""The command `tinyllava-edge eval`."""

import json as json_module
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tinyllava_edge.atomic_files import check_output, output_file, pictures_read
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.options import parse_names
from tinyllava_edge.runtimes.cli_options import (
    AllowPickleOption,
    BundleArgument,
    SourcesOption,
    ThreadsOption,
)
from tinyllava_edge.runtimes.registry import DEFAULT_RUNTIME

if TYPE_CHECKING:
    from tinyllava_edge.benchmarks.bench.worker import Cell

    from .public_sets import PublicSet
    from .questions import Question


def evaluate(
    bundle: BundleArgument,
    questions: Annotated[
        Path | None, typer.Option(help="LLaVA JSON, or a list of {image, question, answer, type}.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the image paths are relative to.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="In the place of --questions: pope or textvqa, by its own rule.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark, as TinyLLaVA's own scripts have it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Pictures of the benchmark; 0 takes all.")] = 0,
    runtime: Annotated[str, typer.Option(help="Runtimes, comma-separated.")] = DEFAULT_RUNTIME,
    vision: Annotated[
        str, typer.Option(help="Vision variants, comma-separated, or 'all'; the most precise one by default.")
    ] = "",
    language: Annotated[
        str, typer.Option(help="Language variants, likewise; the first row is what the others differ from.")
    ] = "",
    checkpoint: Annotated[
        str | None,
        typer.Option(help="For runtime torch; by default where the bundle says it came from."),
    ] = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    blind: Annotated[bool, typer.Option("--blind", help="Show mid-grey instead of the pictures.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer: 16, and 128 of a benchmark's.")
    ] = None,
    threads: ThreadsOption = None,
    answers: Annotated[Path | None, typer.Option(help="Write every answer to this JSONL file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the answers file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print only the line of JSON.")] = False,
) -> None:
    """Score short answers by exact match, with the blind score beside; the last line is JSON.

    A benchmark is scored by its own rule, and asked blind only where --blind says so.
    """
    from tinyllava_edge.benchmarks.bench.plan import Wish, named_bundles, plan_cells
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.runtimes.base import BackendOptions

    from . import public_sets, scores

    if answers is not None:
        given = None if checkpoint is None else checkpoint_path(checkpoint)
        read = (bundle_path(bundle), questions, pictures_read(images, questions), data, given, sources)
        check_output(answers, force=force, mark=answers_mark, sources=read)
        answers.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the work
    asked, public = _read_questions(questions, images, benchmark, data, limit)
    opened = Bundle.open(bundle_path(bundle))
    wish = Wish(
        runtimes=parse_names(runtime),
        vision=parse_names(vision),
        language=parse_names(language) or (opened.variant("language").name,),
        checkpoints=() if checkpoint is None else (checkpoint_path(checkpoint),),
        options=BackendOptions(sources=sources, allow_pickle=allow_pickle, threads=threads),
    )
    cells = plan_cells(named_bundles([opened]), wish)[:-1]
    ways = (blind,) if blind or public else (False, True)
    found = _ask(cells, asked, ways, max_tokens or (public_sets.MAX_TOKENS if public else scores.MAX_TOKENS))
    results = [
        {
            "name": cell.name,
            "runtime": cell.runtime,
            "vision": cell.options.vision,
            "language": cell.options.language,
            **_score(cell, cells[0], asked, found, blind, public),
        }
        for cell in cells
    ]
    summary = {
        **{key: value for key, value in results[0].items() if key != "name"},
        "bundle": str(bundle),
        "manifest_sha256": opened.manifest_sha256,
        "benchmark": benchmark,
        "blind": blind,
        "images": scores.count_pictures(asked),
        "variants": results,
    }
    if answers is not None:
        lines = (json_module.dumps(line, ensure_ascii=False) for line in _answer_lines(asked, found, public))
        with output_file(answers, force=force, mark=answers_mark) as work:
            work.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if not json:
        _print(results, benchmark)
        intervals = "" if public else "; 95 % intervals over pictures"
        note(f"{len(asked)} questions about {summary['images']} pictures{intervals}")
    print_json(summary)


def answers_mark(path: Path) -> str:
    """Whether every line of a file is an answer that `eval` wrote: see `atomic_files.Mark`."""
    lines = [json_module.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ours = all(isinstance(line, dict) and "blind" in line.get("metadata", ()) for line in lines)
    return "" if ours else "holds other lines than answers of eval"


Answers = dict[tuple[str, bool], list[str]]  # by the cell's name, and whether it was blind


def _ask(
    cells: "Sequence[Cell]", asked: "Sequence[Question]", ways: Sequence[bool], max_tokens: int
) -> Answers:
    """Ask every cell all the questions in each way, one cell after the other."""
    from tinyllava_edge.runtimes.model import open_bundle

    from .scores import ask_all

    found: Answers = {}
    with progress() as bar:
        task = bar.add_task("eval", total=len(asked) * len(cells) * len(ways))
        for cell in cells:
            with open_bundle(cell.bundle, runtime=cell.runtime, **vars(cell.options)) as model:
                for is_blind in ways:
                    found[cell.name, is_blind] = ask_all(
                        model,
                        asked,
                        blind=is_blind,
                        max_tokens=max_tokens,
                        on_answer=lambda: bar.advance(task),
                    )
    return found


def _read_questions(
    questions: Path | None, images: Path | None, benchmark: str | None, data: Path | None, limit: int
) -> "tuple[list[Question], PublicSet | None]":
    """What is asked, and the public set that it is of.

    Raises:
        DataError: a file or picture is missing or of another form.
        UsageError: both kinds are given, or neither, or half of one.
    """
    from .public_sets import read_public_set
    from .questions import read_questions

    if benchmark and data and not (questions or images):
        public = read_public_set(benchmark, data, limit)
        return public.questions, public
    if questions and images and not (benchmark or data or limit):
        return read_questions(questions, images), None
    raise UsageError("give --questions and --images, or --benchmark and --data (and its --limit).")


def _score(
    cell: "Cell",
    first: "Cell",
    asked: "Sequence[Question]",
    found: Answers,
    blind: bool,
    public: "PublicSet | None",
) -> dict[str, Any]:
    """A cell's figures: the public set's own, or exact match, blind beside it, and against the first cell."""
    from .scores import summarize

    answers = found[cell.name, blind]
    if public is not None:
        amount = {"asked": len(asked), "of": public.num_all, "subset": len(asked) < public.num_all}
        return {**public.score(answers), **amount}
    return summarize(
        asked, answers, found[cell.name, True], None if cell is first else found[first.name, blind]
    )


def _answer_lines(
    asked: "Sequence[Question]", found: Answers, public: "PublicSet | None"
) -> Iterator[dict[str, Any]]:
    """Every answer with the keys of LLaVA's answer files, and what was expected."""
    from .scores import is_right

    for (name, is_blind), answers in found.items():
        for index, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            yield {
                "question_id": question.id,
                "prompt": question.text,
                "text": answer,
                "answer_id": f"{name}{' blind' if is_blind else ''} {index}",
                "model_id": name,
                "metadata": {
                    "type": question.type,
                    "expected": question.answer,
                    "right": None if public else is_right(question, answer),
                    "blind": is_blind,
                },
            }


def _print(results: list[dict[str, Any]], benchmark: str | None) -> None:
    if benchmark is not None:
        table = Table("variant", benchmark, "questions")
        for result in results:
            table.add_row(result["name"], f"{result['score']:.1f} %", f"{result['asked']} of {result['of']}")
        stdout.print(table)
        return
    kinds = list(results[0]["types"])
    table = Table("variant", "accuracy", *kinds, "blind", "agrees with first", "difference")
    for result in results:
        against = result.get("against_first")
        table.add_row(
            result["name"],
            _interval(result["accuracy"], result["ci95"]),
            *(
                f"{_interval(value['accuracy'], value['ci95'])} blind {result['blind_types'][kind]:.3f}"
                for kind, value in result["types"].items()
            ),
            f"{result['blind_accuracy']:.3f}",
            "" if against is None else f"{against['agreement']:.3f}",
            "" if against is None else _interval(against["difference"], against["difference_ci95"], "+.3f"),
        )
    stdout.print(table)


def _interval(value: float, interval: Sequence[float], form: str = ".3f") -> str:
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
