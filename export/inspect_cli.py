"""`tinyllava-edge inspect`: what a checkpoint or a bundle holds, from headers alone."""

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from tinyllava_edge import console
from tinyllava_edge.checkpoint.layouts import ADAPTER, LORA, PARTS, other_whole_files
from tinyllava_edge.checkpoint.names import NANO, bundle_path, fetch_checkpoint, fetch_sources
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.tensor_names import BUFFERS
from tinyllava_edge.command_options import FitOptions, JsonOption, with_settings
from tinyllava_edge.errors import BundleError, UsageError

if TYPE_CHECKING:
    from tinyllava_edge.checkpoint.config import LanguageConfig, ModelConfig

_WEIGHTS = ("*.safetensors", "*.bin", "*/*.safetensors", "*/*.bin")
T = TypeVar("T")
# Of llama.cpp's types, blocks' scales included.
BITS_PER_WEIGHT = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q4_k_m": 4.85}


@with_settings
def inspect(
    path: Annotated[
        str,
        typer.Argument(help="A directory, a GGUF file, nano, owner/name or owner/name@revision of the hub."),
    ],
    sources: Annotated[
        Path | None, typer.Option(help="Where files are that a checkpoint only names, as for export.")
    ] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights.")] = False,
    device: Annotated[
        str | None,
        typer.Option(help="Say whether a bundle fits this board or card (orin-nano-8gb, ...), or 'here'."),
    ] = None,
    *,
    settings: FitOptions,
    json: JsonOption = False,
) -> None:
    """Show parts, parameters, dtypes, tokens per picture, prompt, variants and memory.

    Exit code 1 where a checkpoint lacks something, or a bundle does not fit the --device.
    """
    if device is not None:
        from tinyllava_edge.fit_cli import show_fit

        show_fit(path, device, settings, json=json)
        return
    if settings != FitOptions():
        raise UsageError("--vision, --language, --context and --kv-type are for --device DEVICE.")
    place = bundle_path(path)
    if not place.exists():
        place = fetch_checkpoint(path, allow_pickle=allow_pickle).path
    if place.is_file() and place.suffix == ".gguf":
        facts = inspect_gguf(place)
    elif not place.is_dir():
        raise UsageError(
            f"{path}: no such directory or GGUF file. Give a checkpoint, a bundle, a .gguf, or '{NANO}'."
        )
    elif (place / "manifest.json").exists():
        facts = inspect_bundle(place)
    else:
        sources = fetch_sources(sources, place)
        facts = inspect_checkpoint(Checkpoint(place, sources=sources, allow_pickle=allow_pickle))
    if json:
        console.print_json(facts)
    else:
        _print(facts)
    if facts.get("missing"):
        raise typer.Exit(1)


def inspect_bundle(directory: Path) -> dict[str, Any]:
    """Facts of a bundle; its files are checked on the way."""
    from tinyllava_edge.bundle import Bundle

    bundle = Bundle.open(directory)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "path": str(directory),
        "parts": {name: part.model_dump() for name, part in manifest.parts.items()},
        "parameters": sum(part.parameters for part in manifest.parts.values()),
        "tokens_per_picture": manifest.budgets[0],
        **({"token_budgets": list(manifest.budgets)} if manifest.budgets[1:] else {}),
        "image_size": manifest.vision.image_size,
        "image_aspect_ratio": manifest.vision.preprocessing.aspect,
        "feature_layer": manifest.vision.feature_layer,
        "context_length": manifest.language.context_length,
        "template": f"{manifest.prompt.template.name} ({manifest.prompt.template_reason})",
        "stop_ids": list(manifest.prompt.stop_ids),
        "variants": [
            {**variant.model_dump(exclude={"files"}), "bytes": bundle.variant_bytes(variant)}
            for variant in manifest.variants
        ],
        "source": manifest.source.model_dump(),
        "versions": manifest.versions,
    }


def inspect_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts of a checkpoint, from config.json and the headers of its weight files; torch is not needed.

    What is nowhere is listed under `missing`, and what it would tell left out.

    Raises:
        CheckpointError: a file is damaged, its headers are not what config.json describes, or there are
            neither weights nor a config.json.
    """
    from tinyllava_edge.checkpoint.headers import read_headers
    from tinyllava_edge.errors import MissingFileError

    missing: list[str] = []
    layout = _or_missing(missing, lambda: checkpoint.layout)
    config = _or_missing(missing, lambda: checkpoint.config)
    headers = _or_missing(missing, lambda: read_headers(checkpoint)) or {}
    weights = (file for each in _WEIGHTS for file in checkpoint.path.glob(each))
    if not checkpoint.config_path.exists() and not any(weights):
        raise MissingFileError(missing[0])  # there is nothing to show
    parts: dict[str, Any] = {name: {"architecture": "?"} for name in PARTS}
    if config is not None:
        parts = {name: {"architecture": kind} for name, kind in config.architectures.items()}
    for name, part in parts.items():
        own = [v for key, v in headers.items() if key.startswith(f"{name}.") and not key.endswith(BUFFERS)]
        part["parameters"] = sum(prod(header.shape) for header in own) if headers else None
        part["dtype"] = ", ".join(sorted({header.dtype for header in own}))
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(checkpoint),
        "layout": layout or "?",
        "parts": parts,
    }
    facts["parameters"] = sum(part["parameters"] or 0 for part in parts.values())
    if config is not None:
        facts |= _config_facts(checkpoint, config, parts, missing)
    if others := other_whole_files(checkpoint.path):
        facts["not_read"] = f"{', '.join(others)}: the layout's own file comes first, as for transformers"
    facts["checked"] = _check(checkpoint) if not missing else "no: something is missing"
    return {**facts, "missing": missing}


def _or_missing(missing: list[str], read: Callable[[], T]) -> T | None:
    """What is read; where a file or package is missing, or not supported, the reason joins the list."""
    from tinyllava_edge.errors import MissingExtraError, MissingFileError, UnsupportedModelError

    try:
        return read()
    except (MissingExtraError, MissingFileError, UnsupportedModelError) as error:
        if str(error) not in missing:
            missing.append(str(error))
        return None


def _config_facts(
    checkpoint: Checkpoint, config: "ModelConfig", parts: dict[str, Any], missing: list[str]
) -> dict[str, Any]:
    from tinyllava_edge.model.assets import read_assets

    assets = _or_missing(missing, lambda: read_assets(checkpoint))
    image_size = assets.preprocessing.image_size if assets else config.vision.image_size
    sized = all(part["parameters"] is not None for part in parts.values())
    return {
        "tokens_per_picture": config.num_picture_tokens(image_size),
        **({"token_budgets": list(budgets)} if (budgets := config.connector.budgets) else {}),
        "image_size": image_size,
        "image_aspect_ratio": config.image_aspect_ratio,
        "feature_layer": config.vision.feature_layer,
        "exported_vision_layers": f"{config.vision.num_used_layers} of {config.vision.num_hidden_layers}",
        "context_length": config.language.max_position_embeddings,
        "template": f"{config.template} ({config.template_reason})",
        "weight_bytes": _weight_bytes(config, parts) if sized else {},
        "kv_bytes_per_token": _kv_bytes_per_token(config.language),
    }


def _check(checkpoint: Checkpoint) -> str:
    """Compare the headers with the model that config.json describes, where there is torch to build it."""
    if find_spec("torch") is None:
        return "no: whether the headers are what config.json describes, only torch can tell"
    from tinyllava_edge.model.checkpoint import tensor_facts
    from tinyllava_edge.model.vlm import checked_tensors

    checked_tensors(checkpoint)  # the headers alone, as no value is asked for
    if checkpoint.layout in (LORA, ADAPTER):
        tensor_facts(checkpoint)  # merges, which tells what does not fit
    return "the headers are what config.json describes"


def inspect_gguf(path: Path) -> dict[str, Any]:
    """Facts of a GGUF file, from its header alone.

    Raises:
        BundleError: the file is damaged.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        values = {name: entry.contents() for name, entry in reader.fields.items()}
    except Exception as error:  # the reader raises many types on damaged files
        raise BundleError(
            f"{path}: damaged GGUF file ({type(error).__name__}). Copy it again, or export it again."
        ) from None
    architecture = str(values.get("general.architecture"))
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    part = {
        "architecture": architecture,
        "parameters": parameters,
        "dtype": ", ".join(f"{count} x {name}" for name, count in types.most_common()),
    }
    return {
        "kind": "GGUF",
        "path": str(path),
        "parts": {"language_model": part},
        "parameters": parameters,
        **{
            name: value if type(value := values.get(f"{architecture}.{name}")) is int else None
            for name in ("context_length", "block_count")
        },
        "tokenizer": str(values.get("tokenizer.ggml.model")),
        "vocabulary": len(tokens) if isinstance(tokens := values.get("tokenizer.ggml.tokens"), list) else 0,
        "file_bytes": path.stat().st_size,
    }


def _weight_bytes(config: "ModelConfig", parts: dict[str, Any]) -> dict[str, int]:
    """About how large each precision of each part is; a tower counts with the layers that are exported."""
    vision = config.vision
    used = vision.num_used_layers / vision.num_hidden_layers
    rows = parts["vision_tower"]["parameters"] * used + parts["connector"]["parameters"]
    language = parts["language_model"]["parameters"]
    return {
        **{f"vision {name}": round(rows * size) for name, size in (("fp32", 4), ("fp16", 2))},
        **{f"language {name}": round(language * bits / 8) for name, bits in BITS_PER_WEIGHT.items()},
    }


def _kv_bytes_per_token(language: "LanguageConfig") -> int:
    """Keys and values of one position in float16."""
    heads = language.values.get("num_kv_heads") or [language.num_key_value_heads] * language.num_hidden_layers
    return int(sum(heads)) * language.head_dim * 2 * 2


def _print(facts: dict[str, Any]) -> None:
    console.stdout.print(f"{facts['kind']} {facts['path']}", highlight=False, markup=False)
    parts = Table("part", "architecture", "parameters", "dtype")
    for name, part in facts["parts"].items():
        count = part["parameters"]
        parts.add_row(name, part["architecture"], "?" if count is None else f"{count:,}", part["dtype"])
    parts.add_row("all", "", f"{facts['parameters']:,}", "")
    console.stdout.print(parts)
    if "variants" in facts:
        from tinyllava_edge.manifest import Recipe

        variants = Table("part", "variant", "target", "bytes", "status")
        for v in facts["variants"]:
            status = f"{v['status']}; {Recipe(**v['recipe'])}" if "recipe" in v else v["status"]
            variants.add_row(v["part"], v["name"], v["target"], f"{v['bytes']:,}", status)
        console.stdout.print(variants)
    if facts.get("weight_bytes"):
        memory = Table("precision", "bytes, about")
        for name, size in facts["weight_bytes"].items():
            memory.add_row(name, f"{size:,}")
        console.stdout.print(memory)
    for key, value in facts.items():
        if not isinstance(value, dict | list) and key not in ("kind", "path", "parameters"):
            console.stdout.print(f"{key.replace('_', ' ')}: {value}", highlight=False, markup=False)
    if budgets := facts.get("token_budgets"):
        console.stdout.print(f"token budgets: {', '.join(map(str, budgets))}", highlight=False, markup=False)
    for text in facts.get("missing", []):
        console.stdout.print(f"missing: {text}", highlight=False, markup=False, soft_wrap=True)
