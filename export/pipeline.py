"""Checkpoint -> bundle, step by step.

The weights stay in the checkpoint's files and stream from there: through torch for the reference, and to
the GGUF files. Only the vision graph is in memory, once. Anonymous memory stays below 1.5 GB and twice the
largest tensor for the language model, twice the tower for the vision graph; `parity/export.json` has the
figures.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

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
    bundle_mark,
    create_bundle,
)
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError
from tinyllava_edge.manifest import Recipe
from tinyllava_edge.memory import return_freed_memory, return_large_blocks, watched_memory
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.streaming import stream_model
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.precisions import OPENVINO_TYPES
from tinyllava_edge.prompt import template_fault
from tinyllava_edge.reference_tensors import ReferenceTensors

from .calibration import calibration_pixels
from .disk_space import bytes_needed
from .imatrix import IMATRIX_FILE, PictureTurns, measure_imatrix, read_prompts, write_imatrix
from .interchange.bundle_files import LlamaCppFiles
from .interchange.mmproj import check_mmproj
from .language_gguf import FILE_TYPES, LanguageSource, OnProgress, no_progress, write_language_gguf
from .onnx_file import TOWER_OUTPUT
from .options import MMPROJ, ExportOptions
from .parity import check_language, reference_trial
from .quantize import check_recipes, quantize_gguf
from .recipes import Recipes, resolve_types
from .reference import MAX_PASSES, MORE_PASSES, write_reference
from .rounding import Floats
from .vision_onnx import build_vision_graph
from .vision_variants import VisionSource, write_variant

__all__ = ["ExportOptions", "export_bundle"]

PACKAGES = "tinyllava-edge torch transformers onnx onnxruntime gguf llama-cpp-python numpy"
OnStep = Callable[[str], None]


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions | None = None,
    *,
    on_step: OnStep = lambda step: None,
    on_total: Callable[[int], object] = lambda total: None,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Turn a checkpoint into a bundle; nothing is at `out` unless all of it was checked.

    What was measured on the way (parity, ranges, types, memory) is in the bundle's `parity/export.json`.

    Args:
        checkpoint: what is exported.
        out: the bundle's directory.
        options: what to make.
        on_step: called with a few words at the start of each step.
        on_total: called with their number, as soon as the checkpoint was looked at.
        on_progress: called within a long step with what is done, of how much.

    Raises:
        OutputExistsError: `out` exists, and `options.force` is false or it is no bundle.
        UsageError: `out` is, holds or lies in what is read.
        DiskFullError: there is no room for the bundle.
        CheckpointError: the checkpoint is damaged or not supported.
        ExportError: a part cannot be converted, or is not equal to the checkpoint.
    """
    options = options or ExportOptions()
    check_output(
        out,
        force=options.force,
        mark=bundle_mark,
        sources=(checkpoint.path, checkpoint.sources, options.calibration, options.imatrix, options.images),
    )
    return_large_blocks()
    if OPENVINO_TYPES.keys() & set(options.language):
        import_module("openvino")  # an extra of its own: missed before any work is done
    on_step("read the checkpoint")
    source = _open_source(checkpoint, options)
    on_total(count_steps(options, 1 + len(_further_budgets(source.checkpoint))))
    calibration = calibration_pixels(options.calibration, source.assets.preprocessing)
    recipes, prompts = _read_recipes(source, options)
    needed = bytes_needed(source.checkpoint, options)
    with watched_memory() as memory, create_bundle(out, force=options.force, needed=needed) as writer:
        root = writer.root
        on_step("check every weight")
        model, parts = _stream(source.checkpoint, root, len(prompts), on_progress)
        on_step("reference tensors")
        reference = write_reference(root, model, source.assets)
        references: dict[int | None, ReferenceTensors] = {None: reference}
        for budget in _further_budgets(source.checkpoint):
            references[budget] = write_reference(root, model.at_tokens(budget), source.assets, budget)
        (root / TOKENIZER_FILE).write_text(source.assets.tokenizer.tokenizer_json, encoding="utf-8")
        recipes = _measure_imatrix(root, model, source, recipes, prompts, on_step)
        peaks = {"reference": memory.peak_bytes()}
        others = _write_mmproj(root, source, model, on_step) if MMPROJ in options.interchange else None
        sources = _vision_sources(model, references, calibration, on_step)
        del model
        vision, vision_report = _export_vision(root, sources, options, on_step)
        return_freed_memory()
        peaks["vision"] = memory.peak_bytes()
        halves = parts["language_model"].dtype == "float16"
        language, language_report = _export_language(root, source, halves, recipes, on_step, on_progress)
        peaks["language"] = memory.peak_bytes()
        report = {"vision": vision_report, "language": language_report, "peak_anonymous_bytes": peaks}
        report |= _check_mmproj(others, language, reference, on_step)
        on_step("seal the bundle")
        num_tokens = reference.embeddings.shape[1]
        manifest = _seal(writer, source, options, parts, (*vision, *language), num_tokens)
        write_parity(Bundle.open(root), "export", report)
    return manifest


def count_steps(options: ExportOptions, budgets: int = 1) -> int:
    """Number of steps that `export_bundle` announces, of a connector with so many budgets."""
    own = 2 * len(options.interchange)
    graphs = budgets * (1 + len(options.vision_variants()))
    return 4 + bool(options.imatrix) + graphs + 2 * len(options.language_variants()) + own


def _further_budgets(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Budgets of visual tokens but for the largest."""
    return checkpoint.config.connector.budgets[1:]


def _open_source(checkpoint: Checkpoint, options: ExportOptions) -> LanguageSource:
    """The checkpoint and its assets; what cannot be converted is found before any work is done."""
    assets = read_assets(checkpoint)
    if fault := template_fault(assets.template):
        raise ExportError(f"{checkpoint}: {fault}. Give --template with one that asks questions.")
    name = checkpoint.repository.partition("/")[2] or checkpoint.path.resolve().name
    source = LanguageSource(checkpoint=checkpoint, assets=assets, name=name)
    source.check()
    if MMPROJ in options.interchange:
        check_mmproj(checkpoint.config, assets.preprocessing)
    return source


def _read_recipes(source: LanguageSource, options: ExportOptions) -> tuple[Recipes, list[PictureTurns]]:
    """Types of tensors, and the prompts of the importance matrix; what is wrong is found before any work."""
    if options.imatrix or options.tensor_types:
        check_recipes()
    matrices = [rule.name for rule in source.rules().values() if len(rule.shape) > 1]
    recipes = Recipes(options=options, types=resolve_types(options.tensor_types, matrices))
    if options.imatrix is None:
        return recipes, []
    return recipes, read_prompts(options.imatrix, options.images, source.assets.template)


def _measure_imatrix(
    root: Path,
    model: TinyLlava,
    source: LanguageSource,
    recipes: Recipes,
    prompts: Sequence[PictureTurns],
    on_step: OnStep,
) -> Recipes:
    if recipes.options.imatrix is None:
        return recipes
    on_step("importance matrix")
    imatrix = measure_imatrix(model, source, prompts)
    write_imatrix(root / IMATRIX_FILE, imatrix, recipes.options.imatrix.name)
    return replace(recipes, imatrix=imatrix)


def _stream(
    checkpoint: Checkpoint, scratch: Path, more_passes: int, on_progress: OnProgress
) -> tuple[TinyLlava, dict[Any, Part]]:
    """The model, every weight of it checked; and architecture, size and stored dtypes of each part."""
    dtypes: dict[str, set[str]] = defaultdict(set)
    read_bytes = all_bytes = 0
    passes = MAX_PASSES + MORE_PASSES * len(_further_budgets(checkpoint)) + more_passes

    def see(name: str, tensor: torch.Tensor) -> None:
        nonlocal all_bytes
        part = name.split(".")[0]
        dtypes[part].add(str(tensor.dtype).removeprefix("torch."))
        all_bytes += tensor.nbytes * passes if part == "language_model" else 0

    def see_read(count: int) -> None:
        nonlocal read_bytes
        read_bytes += count
        on_progress(read_bytes, all_bytes)

    model = stream_model(checkpoint, scratch, on_tensor=see, on_bytes=see_read)
    return model, {
        part: Part(
            architecture=architecture,
            parameters=sum(parameter.numel() for parameter in getattr(model, part).parameters()),
            dtype="+".join(sorted(dtypes[part])),
        )
        for part, architecture in checkpoint.config.architectures.items()
    }


def _write_mmproj(root: Path, source: LanguageSource, model: TinyLlava, on_step: OnStep) -> LlamaCppFiles:
    on_step("mmproj: write")
    files = LlamaCppFiles(root, source)
    files.write(model)
    return files


def _check_mmproj(
    files: LlamaCppFiles | None, language: Sequence[Variant], reference: ReferenceTensors, on_step: OnStep
) -> dict[str, Any]:
    """With the smallest language model, which a program of others will be given."""
    if files is None:
        return {}
    on_step("mmproj: check")
    smallest = [variant for variant in language if variant.target == "gguf"][-1]
    return {"mmproj": files.finish(smallest.files[0], reference)}


def _vision_sources(
    model: TinyLlava,
    references: Mapping[int | None, ReferenceTensors],
    calibration: Floats,
    on_step: OnStep,
) -> Iterator[VisionSource]:
    """What the variants of each budget are made of; the model is let go before the last is handed out."""
    for number, (budget, reference) in enumerate(references.items(), 1):
        on_step("trace vision tower and connector")
        traced = model if budget is None else model.at_tokens(budget)
        graph, trial = (
            build_vision_graph(traced, reference.pixels.shape[-1]),
            reference_trial(traced, reference),
        )
        made = [VisionSource(graph, trial, calibration, budget)]
        del graph, trial, traced
        if number == len(references):
            del model
        return_freed_memory()
        yield made.pop()


def _export_vision(
    root: Path, sources: Iterator[VisionSource], options: ExportOptions, on_step: OnStep
) -> tuple[list[Variant], dict[str, Any]]:
    """Write and check the vision graphs, the largest budget's first."""
    folder = root / "vision"
    folder.mkdir()
    variants: list[Variant] = []
    report: dict[str, dict[str, Any]] = {}
    for source in sources:
        for precision in options.vision_variants():
            name = source.name_of(precision)
            on_step(f"vision {name}")
            beside = None if source.budget is None else folder / f"{precision}.onnx"
            paths, status, report[name] = write_variant(precision, folder / f"{name}.onnx", source, beside)
            files = tuple(path.relative_to(root).as_posix() for path in paths)
            variants.append(Variant(part="vision", name=name, target="onnx", files=files, status=status))
        del source
    return variants, report


def _export_language(
    root: Path,
    source: LanguageSource,
    halves: bool,
    recipes: Recipes,
    on_step: OnStep,
    on_progress: OnProgress,
) -> tuple[list[Variant], dict[str, Any]]:
    """Write and check the language model's GGUF files."""
    folder = root / "language"
    folder.mkdir()
    names = recipes.options.language_variants()
    # The quantizer's input: a float16 file is exact where the checkpoint itself is float16.
    base = "f16" if halves else "f32"
    base_path = folder / f"{base}.gguf"
    report = {}
    for name in sorted(names, key=lambda name: name != base):  # the base first
        on_step(f"language {name}: write")
        if name in OPENVINO_TYPES:
            report[name] = _export_openvino(folder / f"{name}.xml", name, source, on_step, on_progress)
            continue
        path = folder / f"{name}.gguf"
        if name in FILE_TYPES:
            write_language_gguf(path, source, name, on_progress=on_progress)
        else:
            if not base_path.exists():
                write_language_gguf(base_path, source, base, on_progress=on_progress)
            quantize_gguf(base_path, path, name, **recipes.arguments(name), on_progress=on_progress)
        on_step(f"language {name}: check")
        types = recipes.types_of(name)
        report[name] = check_language(path, name, source, types=types, on_progress=on_progress)
    if base not in names:
        base_path.unlink(missing_ok=True)
    return [_language_variant(name, recipes.recorded(name)) for name in names], report


def _export_openvino(
    path: Path, name: str, source: LanguageSource, on_step: OnStep, on_progress: OnProgress
) -> dict[str, Any]:
    from .language_openvino import check_openvino, write_language_openvino  # an extra of its own

    write_language_openvino(path, source, name, on_progress=on_progress)
    on_step(f"language {name}: check")
    return check_openvino(path, source, on_progress=on_progress)


def _language_variant(name: str, recipe: Recipe | None) -> Variant:
    target: Literal["openvino", "gguf"] = "openvino" if name in OPENVINO_TYPES else "gguf"
    suffixes = (".xml", ".bin") if target == "openvino" else (".gguf",)
    files = tuple(f"language/{name}{suffix}" for suffix in suffixes)
    return Variant(part="language", name=name, target=target, files=files, status="verified", recipe=recipe)


def _seal(
    writer: BundleWriter,
    language: LanguageSource,
    options: ExportOptions,
    parts: dict[Any, Part],
    variants: tuple[Variant, ...],
    num_tokens: int,
) -> Manifest:
    """Write the manifest."""
    checkpoint, assets, config = language.checkpoint, language.assets, language.checkpoint.config
    packages = [*PACKAGES.split(), *(["openvino"] if any(v.target == "openvino" for v in variants) else [])]
    # The name that finds the checkpoint again.
    name = f"{checkpoint.repository}@{checkpoint.commit}" if checkpoint.repository else str(checkpoint)
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
            hidden_size=config.language.hidden_size,
            feature_layer=config.vision.feature_layer,
            drop_first=config.vision.drop_first,
            preprocessing=assets.preprocessing,
            tower_output=TOWER_OUTPUT,
        ),
        language=LanguageSpec.of(config.language),
        variants=variants,
        source=Source(
            name=NANO if checkpoint.path == checkpoint_path(NANO) else name,
            checkpoint_sha256=checkpoint.sha256,
            layout=checkpoint.layout,
            repository=checkpoint.repository,
            revision=checkpoint.commit,
        ),
        versions={package: version(package) for package in packages},
    )
