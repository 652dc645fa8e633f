"""`tinyllava-edge prune`: a smaller bundle with some of a bundle's variants, for one device."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.command_options import ForceOption, JsonOption
from tinyllava_edge.console import note, print_json, stdout
from tinyllava_edge.errors import BundleError, UsageError

if TYPE_CHECKING:
    from tinyllava_edge.bundle import Bundle, Manifest, Variant


def prune(
    bundle: Annotated[str, typer.Argument(help="Bundle directory, or 'nano'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle directory to write.")],
    vision: Annotated[str, typer.Option(help="Vision variants to keep, comma-separated.")],
    language: Annotated[str, typer.Option(help="Language variants to keep, comma-separated.")],
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Write a bundle with the named variants only."""
    from tinyllava_edge.atomic_files import check_output
    from tinyllava_edge.bundle import Bundle, bundle_mark

    root = bundle_path(bundle)
    check_output(output, force=force, mark=bundle_mark, sources=(root,))
    opened = Bundle.open(root)
    kept = (*_named(opened, "vision", vision), *_named(opened, "language", language))
    manifest = prune_bundle(opened, output, kept, force=force)
    before, after = (sum(entry.size for entry in m.files) for m in (opened.manifest, manifest))
    if json:
        names = [f"{variant.part} {variant.name}" for variant in kept]
        print_json({"bundle": str(output), "variants": names, "bytes": after, "bytes_before": before})
        return
    stdout.print(f"{output}: {after:,} bytes, {before:,} before")
    note("results of verify were of the other bundle: verify this one on its device")


def prune_bundle(
    bundle: "Bundle", target: Path, kept: tuple["Variant", ...], *, force: bool = False
) -> "Manifest":
    """Copy a bundle with some of its variants; `parity/` stays behind, as its results name another manifest.

    Args:
        bundle: opened, so its files are what its manifest says.
        target: the new bundle, apart from the old one.
        kept: some of the manifest's variants, of both parts.
        force: replace `target`.

    Raises:
        OutputExistsError: `target` exists, and `force` is false or it is no bundle.
        UsageError: `target` is, holds or lies in the bundle.
        DiskFullError: there is no room.
    """
    from tinyllava_edge.atomic_files import check_apart
    from tinyllava_edge.bundle import create_bundle

    manifest = bundle.manifest
    variants = tuple(variant for variant in manifest.variants if variant in kept)
    needed = {path for variant in variants for path in variant.files}
    dropped = {path for variant in manifest.variants for path in variant.files} - needed
    check_apart(target, (bundle.root,))
    size = sum(entry.size for entry in manifest.files if entry.path not in dropped)
    with create_bundle(target, force=force, needed=size) as writer:
        for entry in manifest.files:
            if entry.path not in dropped:
                (writer.root / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.path(entry.path), writer.root / entry.path)
        sealed = writer.seal(
            parts=manifest.parts,
            prompt=manifest.prompt,
            vision=manifest.vision,
            language=manifest.language,
            variants=variants,
            source=manifest.source,
            versions=manifest.versions,
        )
        hashes = {entry.path: entry.sha256 for entry in manifest.files}
        for entry in sealed.files:
            if entry.sha256 != hashes[entry.path]:
                raise BundleError(f"{bundle.root / entry.path}: was changed during the copy. Prune again.")
        return sealed


def _named(bundle: "Bundle", part: str, names: str) -> list["Variant"]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UsageError(f"--{part}: name at least one variant to keep.")
    return [bundle.variant(part, name) for name in wanted]  # type: ignore[arg-type]
