"""The command `tinyllava-edge verify`."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge.checkpoint.names import bundle_path, named_checkpoint
from tinyllava_edge.command_options import AllowPickleOption, JsonOption, SourcesOption, ThreadsOption
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.errors import DiskFullError, UsageError
from tinyllava_edge.export.options import parse_names
from tinyllava_edge.printable import printable
from tinyllava_edge.runtimes.registry import CPU_RUNTIME

# Quick is for a demo: a minute less; its five prompts still have the tokens that a percentile needs.
_QUICK = {"num_pictures": 4, "num_tokens": 48}
_FULL = {"num_pictures": 16, "num_tokens": 128}


def verify(
    bundle: Annotated[
        list[str] | None, typer.Argument(help="A bundle's directory, or nano; with --against, more files.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="The checkpoint it was made from (a directory, 'nano', owner/name or owner/name@revision of "
            "the hub): compare with torch float32 on it. Without it, "
            "compare with the tensors stored in the bundle, which needs no torch and tells less."
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files that we did not make, instead of a bundle, to hold against --checkpoint: a .gguf and "
            "mmproj .gguf of llama.cpp, a tower's .onnx, an OpenVINO folder, a checkpoint, dumped tensors "
            "in an .npz."
        ),
    ] = None,
    runtime: Annotated[str, typer.Option(help="Runtime whose results count.")] = CPU_RUNTIME,
    vision: Annotated[str, typer.Option(help="Vision variants, comma-separated; all by default.")] = "",
    language: Annotated[str, typer.Option(help="Language variants, comma-separated; all by default.")] = "",
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    threads: ThreadsOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer pictures and tokens.")] = False,
    json: JsonOption = False,
) -> None:
    """Find the first stage where a bundle differs from its source; exit code 1 where there is one.

    The result is written to parity/<runtime>.json in the bundle; of nano, in your cache.
    """
    if against:
        from .against.command import verify_against

        files = [*against, *map(Path, bundle or [])]
        verify_against(files, checkpoint, sources=sources, allow_pickle=allow_pickle, json=json)
    elif bundle is None or len(bundle) != 1:
        raise UsageError(
            f"expected one bundle, found {len(bundle or [])}; files of others need --against. "
            "See verify --help."
        )
    else:
        _verify(
            bundle[0], checkpoint, runtime, (vision, language), sources, allow_pickle, threads, quick, json
        )


def _verify(
    bundle: str,
    checkpoint: str | None,
    runtime: str,
    variants: tuple[str, str],
    sources: Path | None,
    allow_pickle: bool,
    threads: int | None,
    quick: bool,
    json: bool,
) -> None:
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.parity_files import parity_path, write_parity
    from tinyllava_edge.runtimes.auto import settle_runtime

    from .climb import (
        amount_compared,
        chosen_variants,
        climb,
        open_reference,
        opening_options,
        planned_stages,
        report_table,
    )
    from .ladder import Ladder

    if sources is not None and checkpoint is None:
        raise UsageError("--sources says where files of the checkpoint are: give --checkpoint too.")
    if quick and checkpoint is None:
        raise UsageError("--quick changes nothing without --checkpoint: leave it out, or give both.")
    opened = Bundle.open(bundle_path(bundle))
    settled = settle_runtime(runtime, opened)
    given = None
    if checkpoint is not None:
        given = named_checkpoint(checkpoint, sources=sources, allow_pickle=allow_pickle)
    amount = _QUICK if quick else _FULL
    ladder = Ladder(
        bundle=opened,
        reference=open_reference(opened, given, num_tokens=amount["num_tokens"]),
        vision=chosen_variants(opened, "vision", parse_names(variants[0]) or settled.variants),
        language=chosen_variants(opened, "language", parse_names(variants[1]), settled.runtime),
        runtime=settled.runtime,
        num_pictures=amount["num_pictures"],
        options=opening_options(given, threads),
    )
    with progress() as bar:
        task = bar.add_task("verify", total=len(planned_stages(ladder)), completed=-1)
        report = climb(ladder, lambda stage: bar.update(task, advance=1, description=f"verify {stage}"))
    result = {**report.to_json(), "quick": quick, **amount_compared(ladder)}
    if json:
        print_json(result)
    else:
        stdout.print(printable(report.verdict, line_ends=True), soft_wrap=True, highlight=False)
        stdout.print(report_table(report))
    try:
        note(f"written to {write_parity(opened, ladder.runtime, result)}")
    except DiskFullError:
        raise
    except OSError as error:
        path = parity_path(opened, ladder.runtime)
        note(f"not written to {path} ({error.strerror}): bench will have no parity figures")
    if not report.passed:
        raise typer.Exit(1)
