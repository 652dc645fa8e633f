"""The command `tinyllava-edge hub-check`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge.atomic_files import check_output, output_directory
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import UsageError

from .published import RELEASED, Released

_STEPS = 4  # of each checkpoint


def hub_check(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the report to write.")],
    checkpoints: Annotated[
        str, typer.Option(help="owner/name[@revision], comma-separated; all released ones by default.")
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
    from tinyllava_edge.export.options import parse_names

    from .hub_check import CheckOptions, check_released, markdown_lines, passed

    output = output.absolute()
    packed = output.with_name(f"{output.name}.tar.gz")
    for path in (output, packed):
        check_output(path, force=force)
    if eval_data is not None and not any((eval_data / name).is_dir() for name in ("pope", "textvqa")):
        raise UsageError(f"--eval-data {eval_data}: holds neither pope/ nor textvqa/.")
    known = {released.repository: released for released in RELEASED}
    names = [name.strip() for name in checkpoints.split(",") if name.strip()]
    chosen = [
        Released(repository=name, pope=own.pope, textvqa=own.textvqa, note=own.note)
        if (own := known.get(name.partition("@")[0]))
        else Released(repository=name)
        for name in names or list(known)
    ]
    options = CheckOptions(
        vision=parse_names(vision),
        language=parse_names(language),
        hub_root=hub_root,
        sources=sources or (None if hub_root else Path("hub")),
        eval_data=eval_data,
        limit=limit,
        allow_pickle=allow_pickle,
    )
    with output_directory(output, force=force) as folder, progress() as bar:
        task = bar.add_task("hub-check", total=_STEPS * len(chosen), completed=-1)
        report = check_released(
            folder, chosen, options, lambda step: bar.update(task, advance=1, description=step)
        )
        if not keep_bundles:
            shutil.rmtree(folder / "bundles", ignore_errors=True)
    beside = output.with_name(f".{output.name}")
    Path(shutil.make_archive(str(beside), "gztar", output.parent, output.name)).replace(packed)
    if json:
        print_json(report)
    else:
        for line in markdown_lines(report):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    note(f"written to {output} and {packed}")
    if not all(passed(record) for record in report["checkpoints"]):
        raise typer.Exit(1)
