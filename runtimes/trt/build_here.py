"""`tinyllava-edge build` without `-o`: an engine for this machine, compared here, kept in the private cache.

Also engine packs: one board builds and signs, identical boards install.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tinyllava_edge.atomic_files import check_output
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note, progress, stdout
from tinyllava_edge.errors import BackendError, PackError

from .choose import DeviceBuild
from .options import EngineOptions
from .pack import open_pack, write_pack
from .record import Choice, EngineRecord


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What is to be done with engine packs.

    Attributes:
        pack, key: the pack to write, and the owner's private key.
        install, trust: the pack to take, and the owner's public key.
        force: replace an existing pack.
    """

    pack: Path | None = None
    key: Path | None = None
    install: Path | None = None
    trust: Path | None = None
    force: bool = False


def build_here(
    bundle: Bundle, vision: str | None, options: EngineOptions, packs: PackOptions
) -> dict[str, Any]:
    """Install or build, compare, choose; returns what `--json` prints.

    Raises:
        BackendError: TensorRT or the GPU is not usable, or nothing passes.
        PackError: what is asked to be packed is no engine, or a key is none.
    """
    if packs.pack is not None:
        check_output(packs.pack, force=packs.force)
    with progress() as bar:
        device = DeviceBuild(bundle, options, say=note, on_progress=_reporter(bar), force=packs.force)
        choice = _install(device, vision, packs) or device.choose(vision)
    record = device.cache.record(choice.engine) if choice.engine else None
    result: dict[str, Any] = {
        **choice.model_dump(mode="json"),
        "engine_record": record.model_dump(mode="json") if record else None,
    }
    if packs.pack is not None:
        result["pack"] = _pack(device, record, packs)
    return result


def print_choice(result: dict[str, Any]) -> None:
    """What was chosen, for people."""
    stdout.print(f"chosen: {result['runtime']}, vision {result['vision']}", markup=False, highlight=False)
    if record := result["engine_record"]:
        facts = record["facts"]
        memory = sum(facts["memory"].values()) / (1 << 20)
        line = f"{facts['device_ms']:.1f} ms a picture on the device, {memory:.0f} MiB; {record['origin']}"
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    if "pack" in result:
        stdout.print(f"pack: {result['pack']}", markup=False, highlight=False, soft_wrap=True)
    stdout.print("run --runtime auto takes it.", markup=False, highlight=False)


def _reporter(bar: Progress) -> Any:
    task = bar.add_task("build")

    def on_progress(phase: str, done: int, total: int) -> None:
        bar.update(task, description=phase, completed=done, total=total)

    return on_progress


def _install(device: DeviceBuild, vision: str | None, packs: PackOptions) -> Choice | None:
    """Take the engine of a pack, or say why not: the board then builds its own."""
    if packs.install is None:
        return None
    assert packs.trust is not None, "checked with the options"
    try:
        with open_pack(packs.install, packs.trust) as stored:
            return device.install(stored, vision)
    except (PackError, BackendError) as error:
        note(f"the pack is not installed: {error} This board builds its own engine.")
        return None


def _pack(device: DeviceBuild, record: EngineRecord | None, packs: PackOptions) -> str:
    """Write the pack of the chosen engine."""
    assert packs.pack is not None
    assert packs.key is not None, "checked with the options"
    if record is None:
        raise PackError("no engine was chosen on this board, so there is nothing to pack.")
    with device.cache.find(record.key) as stored:
        fingerprint = write_pack(packs.pack, stored, packs.key, force=packs.force)
    return f"{packs.pack}, signed by key {fingerprint[:16]}"
