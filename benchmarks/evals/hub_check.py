"""The command `tinyllava-edge hub-check`: released checkpoints through export, verify and eval.

Each command runs in a process of its own, so that a checkpoint that fails, or takes all memory, does not stop
the others. The report is a directory with report.json, report.md and a file for each checkpoint.

Published figures: docs/sources/tinyllava.md#published-scores. No revision could be looked up where this was
written, so none is pinned here: a report records the commit that it resolved, and `owner/name@commit` on the
command line pins it.
"""

import json as json_module
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyllava_edge.atomic_files import check_output, foreign_file, output_directory, output_file, write_json
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import DataError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.export.options import parse_names
from tinyllava_edge.module_process import module_command

Record = dict[str, Any]
_SCORED = ("pope", "textvqa")  # the fields of `Released` with published figures


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
    Released(repository="bczhou/TinyLLaVA-3.1B", textvqa=59.1, note="TinyLLaVABench"),
    Released(repository="bczhou/TinyLLaVA-2.0B", textvqa=56.4, note="TinyLLaVABench"),
    Released(repository="bczhou/TinyLLaVA-1.5B", textvqa=51.7, note="TinyLLaVABench"),
)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How every checkpoint is treated; the fields are the command's options."""

    vision: str
    language: str
    eval_data: Path | None
    limit: int
    hub_root: Path | None
    sources: Path | None
    allow_pickle: bool


def hub_check(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the report to write.")],
    checkpoints: Annotated[
        str, typer.Option(help="owner/name or owner/name@revision, comma-separated; by default all released.")
    ] = "",
    vision: Annotated[str, typer.Option(help="Vision precisions, comma-separated.")] = "fp32",
    language: Annotated[
        str, typer.Option(help="Language model types, comma-separated; the last one is scored.")
    ] = "f16,q8_0",
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
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Download released checkpoints, export, verify and score them; exit code 1 where one fails.

    The report is also packed beside its directory, as .tar.gz.
    """
    output = output.absolute()
    packed = output.with_name(f"{output.name}.tar.gz")
    if eval_data is not None and not any((eval_data / name).is_dir() for name in _SCORED):
        raise UsageError(f"--eval-data {eval_data}: holds neither {'/ nor '.join(_SCORED)}/.")
    options = CheckOptions(
        vision=vision,
        language=language,
        eval_data=eval_data,
        limit=limit,
        hub_root=hub_root,
        sources=sources or (None if hub_root else Path("hub")),
        allow_pickle=allow_pickle,
    )
    chosen = _chosen([name.strip() for name in checkpoints.split(",") if name.strip()])
    read = [sources, *(eval_data / name for name in _SCORED if eval_data)]
    read += [hub_root / released.repository.partition("@")[0] for released in chosen if hub_root]
    check_output(output, force=force, mark=report_mark, sources=read)
    check_output(packed, force=force, mark=packed_mark, sources=read)
    with output_directory(output, force=force, mark=report_mark) as folder, progress() as bar:
        task = bar.add_task("hub-check", total=len(chosen))
        records = []
        for released in chosen:
            records.append(_check(folder, released, options, lambda step: bar.update(task, description=step)))
            bar.advance(task)
        report = _write_report(folder, options, records)
        if not keep_bundles:
            shutil.rmtree(folder / "bundles", ignore_errors=True)
    with output_file(packed, force=force, mark=packed_mark) as work, tarfile.open(work, "w:gz") as archive:
        archive.add(output, output.name)
    if json:
        print_json(report)
    else:
        for line in markdown_lines(report):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    note(f"written to {output} and {packed}")
    if not all(_passed(record) for record in records):
        raise typer.Exit(1)


def _chosen(names: Sequence[str]) -> list[Released]:
    """The named checkpoints, each with what was published of it, or all released ones."""
    known = {released.repository: released for released in RELEASED}
    found = [known.get(name.partition("@")[0], Released(repository=name)) for name in names or known]
    return [replace(released, repository=name) for released, name in zip(found, names or known, strict=True)]


def _check(folder: Path, released: Released, options: CheckOptions, on_step: Callable[[str], None]) -> Record:
    """Everything about one checkpoint, written to a file of its own too."""
    name = released.repository.replace("/", "--")
    record: Record = {"repository": released.repository, "note": released.note, "error": ""}
    try:
        for key, value in _results(folder / "bundles" / name, released, options, on_step):
            record[key] = value
    except (TinyLlavaEdgeError, OSError) as error:
        record["error"] = " ".join(str(error).split())
    write_json(folder / f"{name}.json", record)
    return record


def _results(
    bundle: Path, released: Released, options: CheckOptions, on_step: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Export, verify and eval; what each of them says."""
    from tinyllava_edge.bundle import Bundle

    checkpoint: str | Path = released.repository
    if options.hub_root is not None:
        checkpoint = options.hub_root / released.repository.partition("@")[0]
        if not checkpoint.is_dir():
            raise DataError(f"{checkpoint}: no such directory in the stand-in for the hub.")
    reading = [
        *([] if options.sources is None else ["--sources", options.sources]),
        *(["--allow-pickle"] if options.allow_pickle else []),
    ]
    on_step(f"export {released.repository}")
    variants = ("--vision", options.vision, "--language", options.language)
    notes: list[str] = []
    _run("export", checkpoint, "-o", bundle, *variants, *reading, notes=notes)
    yield "notes", notes
    opened = Bundle.open(bundle)
    source = opened.manifest.source
    yield "commit", source.revision or "stand-in directory"
    yield "parameters", {name: part.parameters for name, part in opened.manifest.parts.items()}
    yield "bytes", {v.name: opened.variant_bytes(v) for v in opened.manifest.variants}
    on_step(f"verify {released.repository}")
    same = checkpoint if options.hub_root else source.name  # the commit that was exported
    yield "verify", _run("verify", bundle, "--checkpoint", same, "--quick", *reading)
    on_step(f"eval {released.repository}")
    yield "scores", dict(_scores(bundle, released, options))


def _scores(bundle: Path, released: Released, options: CheckOptions) -> Iterator[tuple[str, Record]]:
    """The public sets whose files are there, scored with the last language variant."""
    for name in _SCORED:
        if options.eval_data is None or not (options.eval_data / name).is_dir():
            continue
        asked = ("--benchmark", name, "--data", options.eval_data / name, "--limit", options.limit)
        result = _run("eval", bundle, *asked, "--language", parse_names(options.language)[-1])
        published = getattr(released, name)
        difference = None if published is None else result["score"] - published
        yield name, {**result, "published": published, "difference": difference}


def _run(command: str, *arguments: object, notes: list[str] | None = None) -> Record:
    """The JSON that a command of ours prints; what it says besides is added to `notes`.

    Raises:
        DataError: it printed none; the message is its error.
    """
    line = module_command("tinyllava_edge", command, *map(str, arguments), "--json")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    try:
        found: Record = json_module.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        if done.returncode == 2:
            raise DataError(words[-1].removeprefix("tinyllava-edge: ")) from None
        raise DataError(f"{command} ended with code {done.returncode}: {words[-1]}") from None
    if notes is not None:
        notes += done.stderr.splitlines()
    return found


def _write_report(folder: Path, options: CheckOptions, records: list[Record]) -> Record:
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    report = {"options": shown, "checkpoints": records}
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text("\n".join(markdown_lines(report)) + "\n", encoding="utf-8")
    return report


def report_mark(folder: Path) -> str:
    """Whether a directory is what `check_released` wrote and nothing else: see `atomic_files.Mark`."""
    from tinyllava_edge.bundle import bundle_mark

    report = json_module.loads((folder / "report.json").read_bytes())
    if not isinstance(report, dict) or report.keys() != {"options", "checkpoints"}:
        return "has the report of something else"
    names = [record["repository"].replace("/", "--") for record in report["checkpoints"]]
    bundles = [folder / "bundles" / name for name in names if (folder / "bundles" / name).is_dir()]
    known = {"report.json", "report.md", *(f"{name}.json" for name in names)}
    roots = [f"{bundle.relative_to(folder).as_posix()}/" for bundle in bundles]
    fault = foreign_file(folder, lambda name: name in known or name.startswith(tuple(roots)))
    return fault or next(filter(None, map(bundle_mark, bundles)), "")


def packed_mark(path: Path) -> str:
    """Whether a file is such a directory, packed."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            names = archive.getnames()
    except (tarfile.TarError, EOFError) as error:
        return f"is no packed report ({error})"
    return "" if f"{names[0] if names else ''}/report.json" in names else "is no packed report"


def _passed(record: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was exported and is equal to torch; scores are told, not judged."""
    return not record["error"] and bool(record["verify"]["passed"])


def markdown_lines(report: Record) -> Iterator[str]:
    """One row for each checkpoint."""
    yield "# Released checkpoints, exported and checked"
    yield ""
    yield "| checkpoint | commit | against torch | POPE (published) | TextVQA (published) |"
    yield "|---|---|---|---:|---:|"
    for record in report["checkpoints"]:
        verdict = record["error"] or record["verify"]["verdict"]
        scores = [_score(record.get("scores", {}).get(name)) for name in _SCORED]
        yield f"| {' | '.join([record['repository'], record.get('commit', '')[:12], verdict, *scores])} |"


def _score(result: Record | None) -> str:
    if result is None:
        return "not scored"
    found = f"{result['score']:.1f}{' of a subset' if result['subset'] else ''}"
    if result["published"] is None:
        return f"{found} (none)"
    return f"{found} ({result['published']:.1f}, {result['difference']:+.1f})"
