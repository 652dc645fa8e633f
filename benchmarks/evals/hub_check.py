"""The command `tinyllava-edge hub-check`: released checkpoints through export, verify and eval.

Each command runs in a process of its own, so that a checkpoint that fails, or takes all memory, does not stop
the others. The report is a directory with report.json, report.md and a file for each checkpoint, which is
written after each step: `--resume` goes on behind the last one.

No revision could be looked up where this was written, so none is pinned here: a report records the commit
that it resolved, and `owner/name@commit` on the command line pins it.
"""

import json as json_module
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge.append_jsonl import is_complete
from tinyllava_edge.atomic_files import check_output, output_file, write_json
from tinyllava_edge.command_options import JsonOption
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import DataError, ResumeError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.runtimes.registry import CPU_RUNTIME

from .commands import run_command
from .hub_released import RELEASED, SCORED, Record, Released, judged
from .hub_report import REPORT, file_name, markdown_lines, packed_mark, passed, report_mark, write_report


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How every checkpoint is treated; the fields are the command's options."""

    vision: str
    language: str
    runtime: str
    eval_data: Path | None
    limit: int
    hub_root: Path | None
    sources: Path | None
    allow_pickle: bool

    def to_json(self) -> Record:
        """As it stands in a report."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}


def hub_check(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the report to write.")],
    checkpoints: Annotated[
        str, typer.Option(help="owner/name or owner/name@revision, comma-separated; by default all released.")
    ] = "",
    vision: Annotated[
        str, typer.Option(help="Vision precisions, comma-separated; the first one is scored.")
    ] = "fp16",
    language: Annotated[
        str, typer.Option(help="Language model types, comma-separated; all are scored, beside the first.")
    ] = "f16,q4_k_m",
    runtime: Annotated[str, typer.Option(help="Runtime that answers.")] = CPU_RUNTIME,
    eval_data: Annotated[
        Path | None, typer.Option(help="Folder with pope/ and textvqa/, as TinyLLaVA's own scripts have it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Pictures of each benchmark; 0 takes all.")] = 0,
    hub_root: Annotated[
        Path | None, typer.Option(help="A directory with owner/name/ in the place of the hub.")
    ] = None,
    sources: Annotated[
        Path | None, typer.Option(help="Where files are that a checkpoint only names; 'hub' fetches them.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights.")] = False,
    keep_bundles: Annotated[bool, typer.Option("--keep-bundles", help="Keep what was exported.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a report that is not complete.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    json: JsonOption = False,
) -> None:
    """Download released checkpoints, export, verify and score them; exit code 1 where one fails.

    One fails that differs from torch, or whose scores are outside the bounds that were set before any run
    (docs/released.md). The report is also packed beside its directory, as .tar.gz.
    """
    output = output.absolute()
    packed = output.with_name(f"{output.name}.tar.gz")
    if resume and force:
        raise UsageError("--resume goes on with a report, and --force begins it anew: give one.")
    if eval_data is not None and not any((eval_data / name).is_dir() for name in SCORED):
        raise UsageError(f"--eval-data {eval_data}: holds neither {'/ nor '.join(SCORED)}/.")
    options = CheckOptions(
        vision=vision,
        language=language,
        runtime=runtime,
        eval_data=eval_data,
        limit=limit,
        hub_root=hub_root,
        sources=sources or (None if hub_root else Path("hub")),
        allow_pickle=allow_pickle,
    )
    chosen = _chosen([name.strip() for name in checkpoints.split(",") if name.strip()])
    read = [sources, *(eval_data / name for name in SCORED if eval_data)]
    read += [hub_root / released.repository.partition("@")[0] for released in chosen if hub_root]
    if not resume:
        check_output(packed, force=force, mark=packed_mark, sources=read)
    records = _begin(output, options, read, resume=resume, force=force)
    _check_all(output, chosen, options, records)
    report = write_report(output, options.to_json(), [records[r.repository] for r in chosen], complete=True)
    if not keep_bundles:
        shutil.rmtree(output / "bundles", ignore_errors=True)
    with (
        output_file(packed, force=force or resume, mark=packed_mark) as work,
        tarfile.open(work, "w:gz") as archive,
    ):
        archive.add(output, output.name)
    if json:
        print_json(report)
    else:
        for line in markdown_lines(report):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    note(f"written to {output} and {packed}")
    if not all(map(passed, report["checkpoints"])):
        raise typer.Exit(1)


def _chosen(names: Sequence[str]) -> list[Released]:
    """The named checkpoints, each with what was published of it, or all released ones."""
    known = {released.repository: released for released in RELEASED}
    found = [known.get(name.partition("@")[0], Released(repository=name)) for name in names or known]
    return [replace(released, repository=name) for released, name in zip(found, names or known, strict=True)]


def _begin(
    output: Path, options: CheckOptions, read: Sequence[Path | None], *, resume: bool, force: bool
) -> dict[str, Record]:
    """An empty directory with an incomplete report, or what is known of the checkpoints of one.

    Raises:
        OutputExistsError: as `check_output`.
        ResumeError: the report there is complete, no report, or of other options, which are named.
    """
    if not (resume and output.is_dir()):
        check_output(output, force=force, mark=report_mark, sources=read)
        if output.is_dir() and not output.is_symlink():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        output.mkdir(parents=True)
        write_report(output, options.to_json(), [], complete=False)
        return {}
    try:
        begun = json_module.loads((output / REPORT).read_bytes())
        was, is_complete = begun["options"], begun["complete"]
        records = [json_module.loads(path.read_bytes()) for path in output.glob("*--*.json")]
        known: dict[str, Record] = {record["repository"]: record for record in records}
    except (OSError, ValueError, LookupError, TypeError):
        raise ResumeError(f"{output}: holds no report of hub-check. Give another directory.") from None
    if is_complete and output.with_name(f"{output.name}.tar.gz").exists():
        raise ResumeError(f"{output}: complete: nothing to resume. --force begins anew.")
    now = options.to_json()
    differing = [
        f"{name} was {was.get(name)!r}, is {now[name]!r}" for name in now if was.get(name) != now[name]
    ]
    if differing:
        raise ResumeError(
            f"{output}: was begun with something else: {', '.join(differing)}. Give the same again."
        )
    return known


def _check_all(
    folder: Path, chosen: Sequence[Released], options: CheckOptions, records: dict[str, Record]
) -> None:
    """Everything about each checkpoint, into `records` and files; what is known is not done again."""
    with progress() as bar:
        task = bar.add_task("hub-check", total=len(chosen))
        for released in chosen:
            record = records.setdefault(released.repository, {"repository": released.repository})
            record |= {"note": released.note, "error": ""}
            path = folder / f"{file_name(released.repository)}.json"
            write_json(path, record)
            try:
                for _ in _steps(
                    folder, released, options, record, lambda step: bar.update(task, description=step)
                ):
                    write_json(path, record)
            except (TinyLlavaEdgeError, OSError) as error:
                record["error"] = " ".join(str(error).split())
                write_json(path, record)
            bar.advance(task)


def _steps(
    folder: Path, released: Released, options: CheckOptions, record: Record, on_step: Callable[[str], None]
) -> Iterator[None]:
    """Export, verify and eval; after each, what it said is in the record. None is done twice."""
    from tinyllava_edge.bundle import Bundle

    bundle = folder / "bundles" / file_name(released.repository)
    reading = [
        *([] if options.sources is None else ["--sources", options.sources]),
        *(["--allow-pickle"] if options.allow_pickle else []),
    ]
    sets = [name for name in SCORED if options.eval_data and (options.eval_data / name).is_dir()]
    scores = record.setdefault("scores", {})
    if "verify" in record and all(name in scores for name in sets):
        return
    if not bundle.is_dir():
        on_step(f"export {released.repository}")
        variants = ("--vision", options.vision, "--language", options.language)
        record["notes"] = []
        given = _checkpoint(released, options)
        run_command(("export", given, "-o", bundle, *variants, *reading), record["notes"].append)
    opened = Bundle.open(bundle)
    source = opened.manifest.source
    record["commit"] = source.revision or "stand-in directory"
    record["parameters"] = {name: part.parameters for name, part in opened.manifest.parts.items()}
    record["bytes"] = {v.name: opened.variant_bytes(v) for v in opened.manifest.variants}
    yield
    if "verify" not in record:
        on_step(f"verify {released.repository}")
        same = (
            _checkpoint(released, options) if options.hub_root else source.name
        )  # the commit that was exported
        record["verify"] = run_command(("verify", bundle, "--checkpoint", same, "--quick", *reading))
        yield
    for name in sets:
        if name not in scores:
            on_step(f"eval {released.repository}: {name}")
            answers = folder / "answers" / f"{file_name(released.repository)}.{name}.jsonl"
            result = _evaluated(bundle, name, answers, options)
            scores[name] = {**result, "judged": list(judged(name, released, result))}
            yield


def _checkpoint(released: Released, options: CheckOptions) -> str | Path:
    if options.hub_root is None:
        return released.repository
    checkpoint = options.hub_root / released.repository.partition("@")[0]
    if not checkpoint.is_dir():
        raise DataError(f"{checkpoint}: no such directory in the stand-in for the hub.")
    return checkpoint


def _evaluated(bundle: Path, name: str, answers: Path, options: CheckOptions) -> Record:
    """What `eval` says of one set, going on with answers that are there; complete ones are taken."""
    assert options.eval_data is not None
    asked: list[object] = ["--benchmark", name, "--data", options.eval_data / name, "--limit", options.limit]
    asked += [
        "--vision",
        options.vision.split(",")[0],
        "--language",
        options.language,
        "--runtime",
        options.runtime,
    ]
    answers.parent.mkdir(exist_ok=True)
    kept = ("--merge", answers) if is_complete(answers) else ("--answers", answers, "--resume")
    return run_command(("eval", bundle, *asked, *kept))
