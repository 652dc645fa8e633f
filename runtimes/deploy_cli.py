"""`tinyllava-edge deploy`: a bundle, this package and a first answer in one folder, for one board."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge import console

from .cli_options import BundleArgument, JsonOption


def deploy(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    device: Annotated[str, typer.Option(help="The board, such as orin-nano-8gb.")],
    vision: Annotated[str | None, typer.Option(help="Vision variant.", show_default="what fits")] = None,
    language: Annotated[str | None, typer.Option(help="Language variant.", show_default="what fits")] = None,
    context_length: Annotated[
        int | None,
        typer.Option("--context", help="Positions of the context.", show_default="4096 at most", min=1),
    ] = None,
    kv_type: Annotated[
        str | None, typer.Option(help="Type of the KV cache.", show_default="f16, where it fits")
    ] = None,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="Fetch every package too: the board then needs no network.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json: JsonOption = False,
) -> None:
    """Write one folder for a board: the variants that fit it, the package, what it needs, a first answer."""
    from tinyllava_edge.atomic_files import check_output
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.names import bundle_path
    from tinyllava_edge.memory_fit import verdict

    from .deploy import deploy_bundle, deploy_mark

    root = bundle_path(bundle)
    check_output(output, force=force, mark=deploy_mark, sources=(root,))
    asked = {"vision": vision, "language": language, "context_length": context_length, "kv_type": kv_type}
    done = deploy_bundle(Bundle.open(root), output, device, asked, download=wheels, force=force)
    if json:
        console.print_json({"folder": str(output), "bytes": done.bytes, "plan": done.facts, **done.answer})
        return
    console.stdout.print(f"{output}: {done.bytes:,} bytes; {done.setting.options()}", soft_wrap=True)
    console.stdout.print(verdict(done.facts), soft_wrap=True)
    console.stdout.print(f"first answer: {done.answer['answer']}", soft_wrap=True)
    console.note(f"copy {output} to the board, and run there: sh install.sh")
