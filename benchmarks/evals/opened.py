"""What `eval` is given -> a bundle: one that is there, or a checkpoint that is exported once."""

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from tinyllava_edge import __version__
from tinyllava_edge.bundle import MANIFEST_FILE, Bundle
from tinyllava_edge.cache import cache_folder
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.runtimes.bundle_by_name import export_apart, fetched_alone, open_named
from tinyllava_edge.runtimes.cli_options import Opening

from .cells import ALL

_CONFIGS = ("config.json", "adapter_config.json")
VISION, LANGUAGE = "fp32", "f16"  # nearest to the checkpoint


def open_asked(given: str, asked: Opening) -> Bundle:
    """A bundle's directory, `nano`, a name of the hub, or the directory of a checkpoint.

    A checkpoint is exported once into the private cache, under a hash of all that is read and its variants.

    Args:
        given: what the user gave.
        asked: how a checkpoint is read, and the variants that are exported, comma-separated; none and "all"
            take the nearest to the checkpoint.

    Raises:
        BundleError, CheckpointError: it is damaged, or `export_apart` was ended.
        typer.Exit: as `export_apart`.
    """
    vision, language = (None if names in ("", ALL) else names for names in (asked.vision, asked.language))
    asked = replace(asked, vision=vision, language=language)
    folder = Path(given)
    if (folder / MANIFEST_FILE).exists() or not any((folder / name).is_file() for name in _CONFIGS):
        return open_named(given, asked)[0]
    asked = replace(asked, vision=asked.vision or VISION, language=asked.language or LANGUAGE)
    key = _key(Checkpoint(folder, sources=asked.sources, allow_pickle=asked.allow_pickle))
    kept = cache_folder() / "bundles" / f"checkpoint@{key}.{asked.vision}.{asked.language}"
    with fetched_alone(kept):  # shards may be begun together
        if kept.is_dir():
            note(f"{given}: was exported before: {kept}")
            return Bundle.open(kept)
        note(f"{given}: a checkpoint, which is exported once, to {kept}")
        export_apart(given, kept, asked)
        return Bundle.open(kept)


def _key(checkpoint: Checkpoint) -> str:
    """Of all that an export follows from: weights, tokenizer, pictures, template, and this program."""
    from tinyllava_edge.model.assets import read_assets

    assets = read_assets(checkpoint)
    pictures, template = asdict(assets.preprocessing), asdict(assets.template)
    facts = [__version__, checkpoint.sha256, assets.tokenizer.tokenizer_json, assets.bos_id, assets.stop_ids]
    return sha256(json.dumps([*facts, pictures, template]).encode()).hexdigest()[:16]
