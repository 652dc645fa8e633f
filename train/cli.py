"""`tinyllava-edge train`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge.errors import UsageError

_DATA = Path("../shared/data/emoji_vqa/train.json")  # beside the repository


def train(
    recipe: Annotated[str, typer.Argument(help="What to train: nano.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the new checkpoint.")],
    data: Annotated[Path, typer.Option(help="LLaVA JSON.")] = _DATA,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that its image paths are relative to; that of --data if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, views and wordings.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
) -> None:
    """Train a model from nothing, and write it as a TinyLLaVA checkpoint."""
    from tinyllava_edge.output import check_output

    from . import recipes

    if recipe != "nano":
        raise UsageError(f"recipe {recipe!r} is not known. Known: nano.")
    check_output(out, force=force)

    # Idle OpenMP threads would spin at every barrier, which costs all speed on a machine with other work.
    # Must be set before torch loads its OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from .nano import train_nano

    if threads:
        torch.set_num_threads(threads)
    train_nano(out, data=data, images=images or data.parent, recipe=recipes.nano(), seed=seed, force=force)
