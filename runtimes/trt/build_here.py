"""`tinyllava-edge build` without `-o`: an engine for this machine, compared here, kept in the private cache.

Also engine packs: one board builds and signs, identical boards install.
"""

from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import check_output
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note, stdout
from tinyllava_edge.errors import BackendError, PackError

from .choose import DeviceBuild
from .options import EngineOptions
from .pack import open_pack, pack_mark, write_pack
from .process import shown_progress
from .record import Choice

PathAndKey = tuple[Path, Path]


def build_here(
    bundle: Bundle,
    vision: str | None,
    options: EngineOptions,
    *,
    pack: PathAndKey | None = None,
    install: PathAndKey | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Install or build, compare, choose.

    Args:
        bundle: with a reference/ folder.
        vision: the one variant to build, or None for the ladder.
        options: how.
        pack: the engine pack to write, and the owner's private key.
        install: the pack to take instead of building, and the owner's public key.
        force: build again what is in the cache, and replace an existing pack.

    Returns:
        what `--json` prints.

    Raises:
        BackendError: TensorRT or the GPU is not usable, or nothing passes.
        BundleError: the bundle has no such variant, or no reference tensors.
        OutputExistsError: the pack exists and `force` is false.
        PackError: what is asked to be packed is no engine, or a key is none.
    """
    if pack:
        check_output(pack[0], force=force, mark=pack_mark)
    with shown_progress() as on_progress:
        device = DeviceBuild(bundle, options, on_progress=on_progress, force=force)
        taken = _install(device, vision, *install) if install else None
        choice = taken or device.choose(vision)
    record = device.cache.record(choice.engine) if choice.engine else None
    result: dict[str, Any] = {
        **choice.model_dump(mode="json"),
        "engine_record": record.model_dump(mode="json") if record else None,
    }
    if pack:
        if record is None:
            raise PackError("no engine was chosen on this board, so there is nothing to pack.")
        with device.cache.find(record.key) as stored:
            fingerprint = write_pack(pack[0], stored, pack[1], force=force)
        result["pack"] = f"{pack[0]}, signed by key {fingerprint[:16]}"
    return result


def print_choice(result: dict[str, Any]) -> None:
    """What was chosen, for people."""
    lines = [f"chosen: {result['runtime']}, vision {result['vision']}"]
    if record := result["engine_record"]:
        facts = record["facts"]
        memory = sum(facts["memory"].values()) / (1 << 20)
        if record["status"] == "verified":
            lines.append(f"{facts['device_ms']:.1f} ms a picture on the device, {memory:.0f} MiB")
        lines.append(f"{record['status']}, {facts['fusion']}; {record['origin']}")
        if times := facts.get("buffers_ms"):
            figures = ", ".join(f"{name} {ms:.2f}" for name, ms in times.items())
            lines.append(f"buffers {'mapped' if facts['mapped'] else 'copied'} (ms a picture: {figures})")
    if "pack" in result:
        lines.append(f"pack: {result['pack']}")
    lines.append("run --runtime auto takes it.")
    stdout.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _install(device: DeviceBuild, vision: str | None, pack: Path, trust: Path) -> Choice | None:
    """Take the engine of a pack, or say why not: the board then builds its own."""
    try:
        with open_pack(pack, trust) as stored:
            return device.install(stored, vision)
    except (PackError, BackendError) as error:
        note(f"the pack is not installed: {error} This board builds its own engine.")
        return None
