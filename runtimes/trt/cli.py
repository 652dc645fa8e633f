"""The commands `build` and `keygen`: engines from a bundle's vision graphs, and the key that signs packs.

Without `-o` an engine is built for this machine, compared and kept in the private cache (`build_here.py`);
with it engines are written to a directory and not run (`build_ahead.py`).
"""

from pathlib import Path
from typing import Annotated

import typer

from tinyllava_edge.atomic_files import check_apart, check_output
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.command_options import JsonOption
from tinyllava_edge.console import print_json, stdout
from tinyllava_edge.errors import UsageError


def build(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or 'nano'.")],
    target: Annotated[
        str, typer.Option(help="tensorrt (this machine's GPU) or tensorrt-rtx (GeForce RTX).")
    ] = "tensorrt",
    vision: Annotated[
        str | None, typer.Option(help="Vision variants, comma-separated; fp16 where the bundle has it.")
    ] = None,
    sm: Annotated[
        list[int] | None,
        typer.Option(help="Compute capability to build for, 86 for 8.6; again for more. tensorrt-rtx only."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures at once, at most.")] = 1,
    workspace: Annotated[
        int | None, typer.Option(min=1, help="MiB for the kernels; default: from the available memory.")
    ] = None,
    device: Annotated[
        int, typer.Option("--gpu", min=0, help="Number of the GPU, where several are there.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for engines and table.")
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(help="Engine pack to write, for boards identical to this one; needs --key.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Your private key, which signs the pack; see keygen.")
    ] = None,
    install: Annotated[
        Path | None, typer.Option(help="Engine pack to take instead of building; needs --trust.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="The public key that the pack must be signed by.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an existing output; without -o build what was built again."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Build TensorRT engines from a bundle's vision graphs.

    Without -o: for this machine's GPU, into your private cache, and compared here with the bundle's reference
    tensors. What differs is not used: fp16, bf16, fp32, then ONNX Runtime on the GPU, then on the CPU are
    tried, and every step says why. --runtime auto takes what was chosen.
    """
    from tinyllava_edge.bundle import Bundle

    from .build_ahead import engines_mark, print_engines, write_engines
    from .build_here import build_here, print_choice
    from .options import MIB, EngineOptions

    options = EngineOptions(
        target=target,
        max_batch=max_batch,
        workspace_bytes=None if workspace is None else workspace * MIB,
        sms=tuple(dict.fromkeys(sm or ())),
        device=device,
    )
    root = bundle_path(bundle)
    for place in (output, pack):
        if place is None:
            continue
        if place.resolve().is_relative_to(root.resolve()):
            raise UsageError(
                f"{place} is inside the bundle, which never holds engines. Choose another place."
            )
        check_apart(place, (root, key, install, trust))
    if output is None:
        if sm:
            raise UsageError(
                "--sm builds for other GPUs than this machine's: name a directory for them with -o."
            )
        if vision is not None and "," in vision:
            raise UsageError(f"--vision {vision}: one variant for this machine, or several with -o.")
        packed = _both("--pack and --key", pack, key)
        taken = _both("--install and --trust", install, trust)
        opened = Bundle.open(root).at_tokens(None, vision)
        result = build_here(opened, vision, options, pack=packed, install=taken, force=force)
        print_json(result) if json else print_choice(result)
        return
    if pack or install or key or trust:
        raise UsageError(
            "packs are of the private cache: leave -o out, or --pack, --install, --key and --trust."
        )
    check_output(output, force=force, mark=engines_mark)
    report = write_engines(Bundle.open(root), vision, options, output, force=force)
    print_json(report) if json else print_engines(report, output)


def keygen(
    path: Annotated[
        Path, typer.Argument(help="File of the private key; the public one is beside it, with .pub.")
    ],
) -> None:
    """Make the key that signs your engine packs: keep the first file, give boards the second."""
    from .pack import write_key_pair

    public = write_key_pair(path)
    stdout.print(f"{path}: private, keep it\n{public}: for the boards", markup=False, highlight=False)


def _both(names: str, path: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """The values of two options that go together, where they are given."""
    if path is not None and key is not None:
        return path, key
    if path is not None or key is not None:
        raise UsageError(f"{names} go together.")
    return None
