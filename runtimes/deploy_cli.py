"""`tinyllava-edge deploy`: a bundle, this package and a first answer in one folder, for one board."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge import console
from tinyllava_edge.command_options import BundleArgument, FitOptions, ForceOption, JsonOption, with_settings


@with_settings
def deploy(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    device: Annotated[str, typer.Option(help="The board, such as orin-nano-8gb.")],
    settings: FitOptions,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="Fetch every package too: the board then needs no network.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Write one folder for a board: the variants that fit it, the package, what it needs, a first answer.

    What is not named is the most precise that fits.
    """
    from tinyllava_edge.atomic_files import check_output
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.names import bundle_path
    from tinyllava_edge.memory_fit import verdict

    from .deploy import deploy_bundle, deploy_mark

    root = bundle_path(bundle)
    check_output(output, force=force, mark=deploy_mark, sources=(root,))
    done = deploy_bundle(Bundle.open(root), output, device, settings, download=wheels, force=force)
    if json:
        console.print_json({"folder": str(output), "bytes": done.bytes, "plan": done.facts, **done.answer})
        return
    console.stdout.print(f"{output}: {done.bytes:,} bytes; {done.setting.options()}", soft_wrap=True)
    console.stdout.print(verdict(done.facts), soft_wrap=True)
    console.stdout.print(f"first answer: {done.answer['answer']}", soft_wrap=True)
    console.note(f"copy {output} to the board, and run there: sh install.sh")
