"""Train nano from nothing: `python -m examples.nano -o DIR`, from the repository's root."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge.atomic_files import check_output
from tinyllava_edge.command_options import ForceOption
from tinyllava_edge.console import note
from tinyllava_edge.errors import TinyLlavaEdgeError


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the new checkpoint.")],
    data: Annotated[Path, typer.Option(help="LLaVA JSON with a type on every record.")] = Path(
        "../shared/data/emoji_vqa/train.json"  # beside the repository
    ),
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that its image paths are relative to; that of --data if not given."),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of pictures to see besides those of --data; again for more."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, views and wordings.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    force: ForceOption = False,
) -> None:
    """Train nano from nothing, in half an hour on two cores."""
    check_output(out, force=force)
    # Idle OpenMP threads spin at every barrier, which costs all speed on a machine with other work. On two
    # calm cores a step of nano's tower takes 0.22 s where they sleep at once, 0.13 where they spin a while.
    # Must be set before torch loads its OpenMP.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    from .nano import train_nano
    from .recipe import nano

    if threads:
        torch.set_num_threads(threads)
    train_nano(
        out,
        data=data,
        images=images or data.parent,
        recipe=nano(),
        seed=seed,
        unlabelled=pictures or [],
        force=force,
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except TinyLlavaEdgeError as error:
        note(str(error))
        sys.exit(2)
