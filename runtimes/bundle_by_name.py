"""`owner/name[@revision]` of the hub -> a bundle in the private cache: downloaded, or exported once.

Export is a room beside this one, and needs torch: it runs as our own command in a process of its own, whose
memory is free again when the model opens. Its progress and its errors are on the same standard error.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import typer

from tinyllava_edge.bundle import MANIFEST_FILE, Bundle
from tinyllava_edge.checkpoint.files import NESTED_PROCESSOR, PROCESSOR_FILE
from tinyllava_edge.checkpoint.hub import HUB, Repository, cached_snapshot, read_repository
from tinyllava_edge.checkpoint.layouts import TOKENIZER_FILES
from tinyllava_edge.checkpoint.names import bundle_path, kept_bundle
from tinyllava_edge.console import note
from tinyllava_edge.device import read_memory
from tinyllava_edge.errors import BundleError, CheckpointError, MissingExtraError
from tinyllava_edge.extras import install_line
from tinyllava_edge.file_lock import open_lock, take_lock
from tinyllava_edge.full_disk import check_space, full_disk_named
from tinyllava_edge.manifest import MAX_MANIFEST_BYTES, check_listed_names, parse_manifest
from tinyllava_edge.module_process import module_command
from tinyllava_edge.process import Talk

from .cli_options import Opening

# Of Phi-2 + SigLIP, whose checkpoint has 6,436,524,152 bytes (benchmarks/results/export/real_size.json), for
# each byte: CPU seconds, peak memory, and the widest point on the disk for fp16 and q8_0 (with f16 beside).
_CPU_SECONDS, _MEMORY, _DISK, _LEAST_MEMORY = 1470 / 6.44e9, 4.43 / 6.44, 1.5, 1_500_000_000
_PROCESSORS = {PROCESSOR_FILE, NESTED_PROCESSOR}
OpeningT = TypeVar("OpeningT", bound=Opening)
VISION, LANGUAGE = "fp16", "q8_0"  # half of what the next more precise ones take


def is_to_fetch(name_or_path: str) -> bool:
    """Whether it is a hub's name whose bundle is not kept here yet."""
    return not bundle_path(name_or_path).exists() and kept_bundle(name_or_path) is not None


def open_named(name_or_path: str, settings: OpeningT) -> tuple[Bundle, OpeningT]:
    """A bundle's directory, `nano`, or a name of the hub, which is fetched the first time.

    Returns:
        The bundle, and the settings without those that were for the export.

    Raises:
        BundleError: it is damaged, or what was downloaded is.
        CheckpointError: the hub cannot be asked, has no such repository or refuses it.
        MissingExtraError: what the download or the export needs is not installed.
        typer.Exit: the checkpoint cannot be exported, as the export has said; with its code.
    """
    kept = kept_bundle(name_or_path)
    if kept is not None and not Path(name_or_path).exists():
        if kept.is_dir():
            note(f"{name_or_path}: {kept} (remove it to fetch it anew)")
        else:
            _fetch(name_or_path, kept, settings)
        if settings.runtime != "torch":
            settings = replace(settings, sources=None, allow_pickle=False)
    return Bundle.open(bundle_path(name_or_path)), settings


def _fetch(text: str, kept: Path, settings: OpeningT) -> None:
    if find_spec("huggingface_hub") is None:
        line = install_line("torch")
        raise MissingExtraError(
            f"{text}: no such directory, and to ask the hub needs huggingface_hub: {line}"
        )
    try:
        repository = read_repository(text)
    except CheckpointError:
        if cached_snapshot(text) is None:
            raise
        raise CheckpointError(
            f"{text}: the hub could not be asked, but its checkpoint was downloaded before. Export it once: "
            f"tinyllava-edge export {text} -o BUNDLE, and give BUNDLE."
        ) from None
    with fetched_alone(kept):
        if kept.is_dir():  # who had the lock made it
            return
        if MANIFEST_FILE in repository.sizes:
            _download(repository, kept)
        else:
            _export(repository, kept, settings)


@contextmanager
def fetched_alone(kept: Path) -> Iterator[None]:
    """One process fetches a name; another one waits, and finds it there."""
    with full_disk_named(kept):
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open_lock(kept.with_name(f".{kept.name}.lock"))
    try:
        take_lock(lock, lambda: note(f"{kept.name}: another process fetches it; waiting"))
        yield
    finally:
        os.close(lock)


def _download(repository: Repository, kept: Path) -> None:
    """A published bundle: what its manifest lists, each file checked against its hash."""
    if repository.sizes[MANIFEST_FILE] > MAX_MANIFEST_BYTES:
        raise BundleError(f"{repository.name}: its {MANIFEST_FILE} is over {MAX_MANIFEST_BYTES:,} bytes.")
    work = kept.with_name(f".{kept.name}.{repository.commit[:12]}.part")
    with full_disk_named(work):
        work.mkdir(mode=0o700, exist_ok=True)
        repository.download([MANIFEST_FILE], work)
        manifest = parse_manifest((work / MANIFEST_FILE).read_bytes(), work / MANIFEST_FILE)
        check_listed_names(work, manifest)
        size = sum(entry.size for entry in manifest.files)
        note(f"{repository.name}: a bundle, {_gb(size)} to download, kept in {kept}")
        there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        check_space(work, max(0, size - there))
        repository.download([entry.path for entry in manifest.files], work)
        shutil.rmtree(work / ".cache", ignore_errors=True)  # the client's notes
    try:
        Bundle.open(work)
    except BundleError:
        shutil.rmtree(work)
        raise
    work.rename(kept)


def _export(repository: Repository, kept: Path, settings: OpeningT) -> None:
    """A checkpoint, which is downloaded and exported by our own command."""
    missing = [name for name in ("torch", "transformers", "onnx", "gguf") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{repository.name}: is a checkpoint; to export it needs {missing[0]}: {install_line('export')}, "
            f"or export it elsewhere and copy the bundle: tinyllava-edge export {repository.name} -o BUNDLE"
        )
    weights = sum(size for file, size in repository.sizes.items() if file.endswith((".safetensors", ".bin")))
    _say_cost(repository, weights, repository.to_download(allow_pickle=settings.allow_pickle), kept)
    is_whole = all(not group.isdisjoint(repository.sizes) for group in (_PROCESSORS, {*TOKENIZER_FILES}))
    settings = replace(
        settings,
        vision=settings.vision or VISION,
        language=settings.language or LANGUAGE,
        sources=settings.sources or (None if is_whole else Path(HUB)),
    )
    export_apart(f"{repository.name}@{repository.commit}", kept, settings)


def export_apart(given: str, kept: Path, how: Opening) -> None:
    """Export a checkpoint by our own command, in a process of its own, whose memory goes with it.

    Args:
        given: a directory or a hub's name.
        kept: where the bundle is to be.
        how: variants, comma-separated, and how the checkpoint is read.

    Raises:
        CheckpointError: the system ended it.
        typer.Exit: it cannot be exported, as the export has said; with its code.
    """
    command = module_command("tinyllava_edge", "export", given, "-o", str(kept))
    command += ["--vision", str(how.vision), "--language", str(how.language), "--json"]
    command += [*["--quiet"] * Talk.quiet, *["--verbose"] * Talk.verbose]
    command += [] if how.sources is None else ["--sources", str(how.sources)]
    command += ["--allow-pickle"] * how.allow_pickle
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code < 0:
        raise CheckpointError(
            f"{given}: the export was ended by signal {-code}, as the system does where memory is short. "
            "Export it elsewhere and copy the bundle."
        )
    if code:
        raise typer.Exit(code)


def _say_cost(repository: Repository, weights: int, download: int, kept: Path) -> None:
    from huggingface_hub import constants

    memory, disk = max(_LEAST_MEMORY, int(_MEMORY * weights)), int(_DISK * weights)
    free = read_memory()
    known = f" ({_gb(free.available_bytes)} free)" if free is not None else ""
    note(
        f"{repository.name}: a checkpoint, which is exported once: {_gb(download)} to download, then about "
        f"{_gb(disk)} of disk in {kept.parent}, {_gb(memory)} of memory{known} and "
        f"{max(1, round(_CPU_SECONDS * weights / 60))} min of processor time"
    )
    check_space(Path(constants.HF_HUB_CACHE), download)
    check_space(kept.parent, disk)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
