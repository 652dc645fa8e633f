"""Checkpoint -> bundle, step by step.

The weights stay in the checkpoint's files and stream from there: through torch for the reference, and to
the GGUF files. Only the vision graph is in memory, once. Anonymous memory stays below 1.5 GB and twice the
largest tensor for the language model, twice the tower for the vision graph; `parity/export.json` has the
figures.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tinyllava_edge.atomic_files import check_output
from tinyllava_edge.bundle import (
    TOKENIZER_FILE,
    Bundle,
    BundleWriter,
    LanguageSpec,
    Manifest,
    Part,
    PromptSpec,
    Source,
    Variant,
    VisionSpec,
    create_bundle,
)
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path
from tinyllava_edge.checkpoint.read_config import ModelConfig, read_model_config
from tinyllava_edge.errors import ExportError
from tinyllava_edge.memory import return_freed_memory, return_large_blocks, watched_memory
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.checkpoint import checkpoint_layout, checkpoint_sha256
from tinyllava_edge.model.streaming import stream_model
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.prompt import template_fault

from .calibration import calibration_pixels
from .language_gguf import FILE_TYPES, LanguageSource, OnProgress, no_progress, write_language_gguf
from .onnx_file import TOWER_OUTPUT
from .options import ExportOptions
from .parity import check_language, vision_trial
from .quantize import quantize_gguf
from .reference import MAX_PASSES, write_reference
from .vision_onnx import build_vision_graph
from .vision_variants import VisionSource, write_variant

__all__ = ["ExportOptions", "export_bundle"]

PACKAGES = "tinyllava-edge torch transformers onnx onnxruntime gguf llama-cpp-python numpy"
OnStep = Callable[[str], None]


def export_bundle(
    checkpoint: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    on_step: OnStep = lambda step: None,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Turn a checkpoint into a bundle; nothing is at `out` unless all of it was checked.

    What was measured on the way (parity, ranges, types, memory) is in the bundle's `parity/export.json`.

    Args:
        checkpoint: a TinyLLaVA checkpoint directory.
        out: the bundle's directory.
        options: what to make.
        on_step: called with a few words at the start of each step; there are `count_steps(options)`.
        on_progress: called within a long step with what is done, of how much.

    Raises:
        OutputExistsError: `out` exists and `options.force` is false.
        CheckpointError: the checkpoint is damaged or not supported.
        ExportError: a part cannot be converted, or is not equal to the checkpoint.
    """
    options = options or ExportOptions()
    check_output(out, force=options.force)
    return_large_blocks()
    on_step("read the checkpoint")
    config = read_model_config(checkpoint, template=options.template, sources=options.sources)
    assets = read_assets(checkpoint, config, sources=options.sources)
    if fault := template_fault(assets.template):
        raise ExportError(f"{checkpoint}: {fault}. Give --template with one that asks questions.")
    source = LanguageSource(
        checkpoint=checkpoint,
        config=config,
        assets=assets,
        name=options.repository.partition("/")[2] or checkpoint.resolve().name,
        allow_pickle=options.allow_pickle,
    )
    source.check()
    calibration = calibration_pixels(options.calibration, assets.preprocessing)
    with watched_memory() as memory, create_bundle(out, force=options.force) as writer:
        on_step("check every weight")
        stored = _StoredWeights(on_progress)
        model = stream_model(
            checkpoint,
            config,
            writer.root,
            allow_pickle=options.allow_pickle,
            on_tensor=stored.see,
            on_bytes=stored.see_read,
        )
        parts = _parts(model, stored.dtypes())
        on_step("reference tensors")
        reference = write_reference(writer.root, model, assets)
        (writer.root / TOKENIZER_FILE).write_text(assets.tokenizer.tokenizer_json, encoding="utf-8")
        peaks = {"reference": memory.peak_bytes()}
        on_step("trace vision tower and connector")
        trial = vision_trial(model, reference)
        graph = build_vision_graph(model, reference.pixels.shape[-1])
        del model
        return_freed_memory()
        vision_source = VisionSource(graph, trial, calibration)
        del graph
        vision, vision_report = _export_vision(writer.root, vision_source, options, on_step)
        del vision_source
        return_freed_memory()
        peaks["vision"] = memory.peak_bytes()
        halves = parts["language_model"].dtype == "float16"
        language, language_report = _export_language(
            writer.root, source, halves, options, on_step, on_progress
        )
        peaks["language"] = memory.peak_bytes()
        on_step("seal the bundle")
        num_tokens = reference.embeddings.shape[1]
        origin = _source(checkpoint, options)
        manifest = _seal(writer, origin, config, assets, parts, (*vision, *language), num_tokens)
        write_parity(
            Bundle.open(writer.root),
            "export",
            {"vision": vision_report, "language": language_report, "peak_anonymous_bytes": peaks},
        )
    return manifest


def count_steps(options: ExportOptions) -> int:
    """Number of steps that `export_bundle` announces."""
    return 5 + len(options.vision_variants()) + 2 * len(options.language_variants())


def _export_vision(
    root: Path, source: VisionSource, options: ExportOptions, on_step: OnStep
) -> tuple[list[Variant], dict[str, Any]]:
    """Write and check the vision graphs."""
    (root / "vision").mkdir()
    variants: list[Variant] = []
    report: dict[str, dict[str, Any]] = {}
    for name in options.vision_variants():
        on_step(f"vision {name}")
        paths, status, report[name] = write_variant(name, root / "vision" / f"{name}.onnx", source)
        files = tuple(path.relative_to(root).as_posix() for path in paths)
        variants.append(Variant(part="vision", name=name, target="onnx", files=files, status=status))
    return variants, report


def _export_language(
    root: Path,
    source: LanguageSource,
    halves: bool,
    options: ExportOptions,
    on_step: OnStep,
    on_progress: OnProgress,
) -> tuple[list[Variant], dict[str, Any]]:
    """Write and check the language model's GGUF files."""
    folder = root / "language"
    folder.mkdir()
    names = options.language_variants()
    # The quantizer's input: a float16 file is exact where the checkpoint itself is float16.
    base = "f16" if halves else "f32"
    base_path = folder / f"{base}.gguf"
    report = {}
    for name in sorted(names, key=lambda name: name != base):  # the base first
        on_step(f"language {name}: write")
        path = folder / f"{name}.gguf"
        if name in FILE_TYPES:
            write_language_gguf(path, source, name, on_progress=on_progress)
        else:
            if not base_path.exists():
                write_language_gguf(base_path, source, base, on_progress=on_progress)
            quantize_gguf(base_path, path, name, on_progress=on_progress)
        on_step(f"language {name}: check")
        report[name] = check_language(path, name, source, on_progress=on_progress)
    if base not in names:
        base_path.unlink(missing_ok=True)
    return [_language_variant(name) for name in names], report


def _language_variant(name: str) -> Variant:
    files = (f"language/{name}.gguf",)
    return Variant(part="language", name=name, target="gguf", files=files, status="verified")


class _StoredWeights:
    """What goes by while the weights are checked, and then read for the reference."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._dtypes: dict[str, set[str]] = {}
        self._language_bytes = 0
        self._read_bytes = 0

    def see(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor was checked."""
        part = name.split(".")[0]
        self._dtypes.setdefault(part, set()).add(str(tensor.dtype).removeprefix("torch."))
        self._language_bytes += tensor.nbytes if part == "language_model" else 0

    def see_read(self, count: int) -> None:
        """Bytes of the language model were read again."""
        self._read_bytes += count
        self._on_progress(self._read_bytes, self._language_bytes * MAX_PASSES)

    def dtypes(self) -> dict[str, str]:
        """Stored dtypes of each part."""
        return {part: "+".join(sorted(names)) for part, names in self._dtypes.items()}


def _parts(model: TinyLlava, dtypes: dict[str, str]) -> dict[Any, Part]:
    """Architecture, size and stored dtype of each part."""
    config = model.config
    architectures = {
        "vision_tower": config.vision.architecture,
        "connector": config.connector.type,
        "language_model": config.language.architecture,
    }
    return {
        part: Part(
            architecture=architecture,
            parameters=sum(parameter.numel() for parameter in getattr(model, part).parameters()),
            dtype=dtypes.get(part, ""),
        )
        for part, architecture in architectures.items()
    }


def _source(checkpoint: Path, options: ExportOptions) -> Source:
    """Where the bundle comes from, under the name that finds it again."""
    name = f"{options.repository}@{options.commit}" if options.repository else str(checkpoint)
    return Source(
        name=NANO if checkpoint == checkpoint_path(NANO) else name,
        checkpoint_sha256=checkpoint_sha256(checkpoint),
        layout=checkpoint_layout(checkpoint),
        repository=options.repository,
        revision=options.commit,
    )


def _seal(
    writer: BundleWriter,
    source: Source,
    config: ModelConfig,
    assets: Assets,
    parts: dict[Any, Part],
    variants: tuple[Variant, ...],
    num_tokens: int,
) -> Manifest:
    """Write the manifest."""
    language = config.language
    return writer.seal(
        parts=parts,
        prompt=PromptSpec(
            template=assets.template,
            template_reason=config.template_reason,
            bos_id=assets.bos_id,
            stop_ids=assets.stop_ids,
        ),
        vision=VisionSpec(
            image_size=assets.preprocessing.image_size,
            num_tokens=num_tokens,
            hidden_size=language.hidden_size,
            feature_layer=config.vision.feature_layer,
            drop_first=config.vision.drop_first,
            preprocessing=assets.preprocessing,
            tower_output=TOWER_OUTPUT,
        ),
        language=LanguageSpec(
            architecture=language.architecture,
            hidden_size=language.hidden_size,
            vocab_size=language.vocab_size,
            num_hidden_layers=language.num_hidden_layers,
            num_attention_heads=language.num_attention_heads,
            num_key_value_heads=language.num_key_value_heads,
            head_dim=language.head_dim,
            context_length=language.max_position_embeddings,
            embedding_scale=language.embedding_scale,
        ),
        variants=variants,
        source=source,
        versions={package: version(package) for package in PACKAGES.split()},
    )
