"""The commands `tinyllava-edge card` and `tinyllava-edge push`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.command_options import BundleArgument, JsonOption
from tinyllava_edge.console import note, print_json
from tinyllava_edge.errors import UsageError

if TYPE_CHECKING:
    from tinyllava_edge.bundle import Bundle

    from .document import Document

MARKDOWN, PAGE = "card.md", "card.html"
_MOST_PAGE_BYTES = 64 << 20
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="The checkpoint it was made from, for sources and licences; by default where the bundle says.",
    ),
]
BenchOption = Annotated[
    list[Path] | None,
    typer.Option("--bench", help="Report of bench: its directory, or its report.json; may be repeated."),
]
EvalOption = Annotated[
    list[Path] | None, typer.Option("--eval", help="File with what eval --json printed; may be repeated.")
]


def card(
    bundle: BundleArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Directory for {MARKDOWN} and {PAGE}.")
    ] = None,
    checkpoint: CheckpointOption = None,
    bench: BenchOption = None,
    evals: EvalOption = None,
    name: Annotated[
        str, typer.Option(help="Its name on the card and in the commands; by default as it is given.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing card.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a bundle's card, as Markdown for the hub and as one HTML file; without -o print the Markdown.

    All of it is from files: what none of them says is said to be unknown.
    """
    from tinyllava_edge.atomic_files import check_output, output_directory, write_bytes
    from tinyllava_edge.bundle import Bundle

    from .card import Asked, build_card
    from .document import markdown_of, page_of

    root = bundle_path(bundle)
    read = (root, *(bench or ()), *(evals or ()), None if checkpoint is None else Path(checkpoint))
    if output is not None:
        check_output(output, force=force, mark=card_mark, sources=read)
    opened = Bundle.open(root)
    asked = Asked(name=name or bundle, checkpoint=checkpoint, bench=bench or (), evals=evals or ())
    document, _ = build_card(opened, asked)
    text = markdown_of(document)
    if output is not None:
        with output_directory(output, force=force, mark=card_mark) as folder:
            write_bytes(folder / MARKDOWN, text.encode())
            write_bytes(folder / PAGE, page_of(document).encode())
    if json:
        _print_json(opened, document, output)
    elif output is None:
        sys.stdout.write(text)
    else:
        note(f"written to {output}: {MARKDOWN}, {PAGE}")


def _print_json(bundle: "Bundle", document: "Document", output: Path | None) -> None:
    print_json(
        {
            "bundle": str(bundle.root),
            "manifest_sha256": bundle.manifest_sha256,
            "output": None if output is None else str(output),
            "metadata": dict(document.metadata),
            "missing": list(document.missing),
        }
    )


def card_mark(folder: Path) -> str:
    """Whether a directory is what `card` wrote and nothing else: see `atomic_files.Mark`."""
    from tinyllava_edge.atomic_files import foreign_file
    from tinyllava_edge.user_files import read_user_text

    from .document import MARKER

    if MARKER not in read_user_text(folder / PAGE, most=_MOST_PAGE_BYTES):
        return f"has a {PAGE} that is not ours"
    return foreign_file(folder, {MARKDOWN, PAGE}.__contains__)


def push(
    bundle: BundleArgument,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Only you see the repository, where it is new.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be uploaded; nothing is asked or sent.")
    ] = False,
    checkpoint: CheckpointOption = None,
    bench: BenchOption = None,
    evals: EvalOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another bundle of that name.")] = False,
    json: JsonOption = False,
) -> None:
    """Upload a bundle and its card to the Hugging Face hub, every file hashed before; then run OWNER/NAME.

    It needs a token that may write there: `hf auth login`, or HF_TOKEN. What an earlier try has uploaded
    is not sent again, and nobody sees any of it before all of it is there.
    """
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.hub import parse_name
    from tinyllava_edge.runtimes.serve.errors import without_paths

    from .card import Asked, build_card
    from .document import markdown_of
    from .upload import files_to_upload, size_of_all, upload

    if (parsed := parse_name(name)) is None or parsed[1] is not None:
        raise UsageError(f"{name!r} is no name of a repository. Give owner/name.")
    opened = Bundle.open(bundle_path(bundle))
    asked = Asked(name=name, checkpoint=checkpoint, bench=bench or (), evals=evals or ())
    document, origin = build_card(opened, asked)
    files = files_to_upload(opened, markdown_of(document), origin.notices if origin else ())
    for path, content in files.items():
        note(f"{path}: {size_of_all([content]):,} bytes")
    where = opened.manifest.source.name
    if without_paths(where) != where:
        note(f"manifest.json tells everybody where the checkpoint was: {where}")
    for line in document.missing:
        note(f"not on the card: {line}")
    total = size_of_all(files.values())
    note(f"{'would upload' if dry_run else 'to upload'}: {len(files)} files, {total:,} bytes, to {name}")
    sent = None if dry_run else upload(opened, name, files, private=private, force=force)
    if json:
        print_json(
            {
                "bundle": str(opened.root),
                "manifest_sha256": opened.manifest_sha256,
                "repository": name,
                "files": {path: size_of_all([content]) for path, content in files.items()},
                "bytes": total,
                "commit": sent,
            }
        )
    elif sent is not None:
        sys.stdout.write(f"{name}@{sent}\n")
