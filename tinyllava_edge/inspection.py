"""`tinyllava-edge inspect`: what a checkpoint or a bundle holds, from headers alone."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tinyllava_edge import console
from tinyllava_edge.embedded import NANO, bundle_path
from tinyllava_edge.errors import UsageError


def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint or bundle directory, or nano.")],
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Show parts, parameters, dtypes, tokens per picture, prompt and variants."""
    directory = bundle_path(path)
    if not directory.is_dir():
        raise UsageError(f"{path}: no such directory. Give a checkpoint or bundle directory, or '{NANO}'.")
    is_bundle = (directory / "manifest.json").exists()
    facts = inspect_bundle(directory) if is_bundle else inspect_checkpoint(directory)
    if json:
        console.print_json(facts)
    else:
        _print(facts)


def inspect_bundle(directory: Path) -> dict[str, Any]:
    """Facts of a bundle; its files are checked on the way."""
    from tinyllava_edge.bundle import Bundle

    bundle = Bundle.open(directory)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "path": str(directory),
        "parts": {
            name: {"architecture": p.architecture, "parameters": p.parameters, "dtype": p.dtype}
            for name, p in manifest.parts.items()
        },
        "parameters": sum(part.parameters for part in manifest.parts.values()),
        "tokens_per_picture": manifest.vision.num_tokens,
        "image_size": manifest.vision.image_size,
        "image_aspect_ratio": manifest.vision.preprocessing.aspect,
        "feature_layer": manifest.vision.feature_layer,
        "context_length": manifest.language.context_length,
        "template": f"{manifest.prompt.template.name} ({manifest.prompt.template_reason})",
        "stop_ids": list(manifest.prompt.stop_ids),
        "variants": [
            {
                "part": variant.part,
                "name": variant.name,
                "target": variant.target,
                "bytes": bundle.variant_bytes(variant),
                "status": variant.status,
            }
            for variant in manifest.variants
        ],
        "source": manifest.source.model_dump(),
        "versions": manifest.versions,
    }


def inspect_checkpoint(directory: Path) -> dict[str, Any]:
    """Facts of a checkpoint, from config.json and the headers of its weight files."""
    from tinyllava_edge.config import read_model_config
    from tinyllava_edge.model.checkpoint import checkpoint_layout, tensor_facts

    config = read_model_config(directory)
    parts = {
        "vision_tower": {"architecture": config.vision.architecture},
        "connector": {"architecture": config.connector.type},
        "language_model": {"architecture": config.language.architecture},
    }
    tensors = tensor_facts(directory)
    facts: dict[str, Any] = {}
    for name, part in parts.items():
        own = [value for key, value in tensors.items() if key.startswith(f"{name}.")]
        dtypes = sorted({dtype for _, dtype in own})
        facts[name] = {
            **part,
            "parameters": sum(_count(shape) for shape, _ in own),
            "dtype": ", ".join(dtypes),
        }
    return {
        "kind": "checkpoint",
        "path": str(directory),
        "layout": checkpoint_layout(directory),
        "parts": facts,
        "parameters": sum(part["parameters"] for part in facts.values()),
        "tokens_per_picture": config.vision.num_tokens,
        "image_size": config.vision.image_size,
        "image_aspect_ratio": config.image_aspect_ratio,
        "feature_layer": config.vision.feature_layer,
        "used_vision_layers": config.vision.num_used_layers,
        "context_length": config.language.max_position_embeddings,
        "template": f"{config.template} ({config.template_reason})",
    }


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _print(facts: dict[str, Any]) -> None:
    console.stdout.print(f"{facts['kind']} {facts['path']}", highlight=False, markup=False)
    parts = Table("part", "architecture", "parameters", "dtype")
    for name, part in facts["parts"].items():
        parts.add_row(name, escape(part["architecture"]), f"{part['parameters']:,}", escape(part["dtype"]))
    parts.add_row("all", "", f"{facts['parameters']:,}", "")
    console.stdout.print(parts)
    if "variants" in facts:
        variants = Table("part", "variant", "target", "bytes", "status")
        for v in facts["variants"]:
            variants.add_row(v["part"], escape(v["name"]), v["target"], f"{v['bytes']:,}", v["status"])
        console.stdout.print(variants)
    for key, value in facts.items():
        if not isinstance(value, dict | list) and key not in ("kind", "path", "parameters"):
            console.stdout.print(f"{key.replace('_', ' ')}: {value}", highlight=False, markup=False)
