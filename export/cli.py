"""The command `tinyllava-edge export`."""

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tinyllava_edge.atomic_files import check_output
from tinyllava_edge.checkpoint.names import checkpoint_path, named_checkpoint
from tinyllava_edge.command_options import ForceOption, JsonOption
from tinyllava_edge.console import note, print_json, progress, stdout
from tinyllava_edge.precisions import ALL_LANGUAGE_TYPES, PRECISIONS

from .options import TRANSFORMERS, ExportOptions, parse_names

if TYPE_CHECKING:
    from tinyllava_edge.checkpoint.opened import Checkpoint

_DEFAULTS = ExportOptions()


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint's directory, 'nano', owner/name or owner/name@revision of the hub."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle directory to write.")],
    vision: Annotated[
        str, typer.Option(help=f"Vision precisions, comma-separated: {', '.join(PRECISIONS)}.")
    ] = ",".join(_DEFAULTS.vision),
    language: Annotated[
        str, typer.Option(help=f"Language model types, comma-separated: {', '.join(ALL_LANGUAGE_TYPES)}.")
    ] = ",".join(_DEFAULTS.language),
    interchange: Annotated[
        str,
        typer.Option(
            help="For other programs: 'mmproj' adds llama.cpp's file and a Modelfile to the bundle; "
            "'transformers' writes LlavaForConditionalGeneration's directory in its place."
        ),
    ] = "",
    sources: Annotated[
        Path | None,
        typer.Option(
            help="Where tokenizer and processor files are that the checkpoint only names; 'hub' fetches them."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Prompt template (names: docs/checkpoints.md), not the one stored or inferred."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Directory of pictures that int8 is fitted to; nine of the package's without."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            help="LLaVA's training data (JSON), or a folder of pictures: quantized GGUF types weigh their "
            "errors by what such prompts compute."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures that --imatrix's file names; its own without.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            help="REGEX=TYPE, may be repeated: matrices of a quantized GGUF get TYPE where REGEX is found in "
            "their names, as attn_v=q8_0."
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin weights (with weights_only).")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a bundle, checked against it."""
    from tinyllava_edge.bundle import bundle_mark  # numpy: not for a page of help

    from .interchange.llava_mark import llava_mark

    options = ExportOptions(
        vision=parse_names(vision),
        language=parse_names(language),
        interchange=parse_names(interchange),
        calibration=calibration,
        imatrix=imatrix,
        images=images,
        tensor_types=tuple(tensor_type or ()),
        force=force,
    )
    read = (checkpoint_path(checkpoint), sources, calibration, imatrix, images)
    is_llava = TRANSFORMERS in options.interchange
    check_output(output, force=force, mark=llava_mark if is_llava else bundle_mark, sources=read)
    opened = named_checkpoint(checkpoint, sources=sources, template=template, allow_pickle=allow_pickle)
    if is_llava:
        _export_llava(opened, output, force=force, json=json)
    else:
        _export(opened, output, options, json=json)


def _export_llava(checkpoint: "Checkpoint", output: Path, *, force: bool, json: bool) -> None:
    from .interchange.transformers_llava import export_llava  # torch: seconds

    with progress() as bar:
        task = bar.add_task("weights", total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        facts = export_llava(checkpoint, output, force=force, on_progress=on_progress)
    if json:
        print_json({"directory": str(output), **facts})
    else:
        stdout.print(f"{output}: LlavaForConditionalGeneration, <image> is token {facts['image_token_id']}")


def _export(checkpoint: "Checkpoint", output: Path, options: ExportOptions, *, json: bool) -> None:
    from tinyllava_edge.bundle import Bundle

    from .pipeline import export_bundle  # torch: seconds, so only after every quick check

    with progress() as bar:
        task = bar.add_task("export", total=None, completed=-1)
        step = bar.add_task("", total=None)

        def on_step(description: str) -> None:
            bar.advance(task)
            bar.reset(step, description=description, total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(step, completed=100 * done // total, total=100)

        export_bundle(
            checkpoint,
            output,
            options,
            on_step=on_step,
            on_total=lambda total: bar.update(task, total=total),
            on_progress=on_progress,
        )
    bundle = Bundle.open(output)
    report = json_module.loads((output / "parity" / "export.json").read_text(encoding="utf-8"))
    rows = [
        {
            "part": variant.part,
            "name": variant.name,
            "bytes": bundle.variant_bytes(variant),
            "status": variant.status,
            **({"recipe": variant.recipe.model_dump()} if variant.recipe else {}),
            **report[variant.part][variant.name],
        }
        for variant in bundle.manifest.variants
    ]
    for variant in bundle.manifest.variants:
        if variant.recipe:
            note(f"{variant.name}: {variant.recipe}")
    for row in rows:
        for line in _remarks(row):
            note(f"{row['name']}: {line}")
    mmproj = report.get("mmproj")
    if mmproj is not None:
        note(f"mmproj.gguf: llama.cpp's own code gives {_equality({'part': 'vision', 'rounded': mmproj})}")
    peaks = report["peak_anonymous_bytes"]
    if json:
        facts = {"bundle": str(output), "manifest_sha256": bundle.manifest_sha256, "variants": rows}
        print_json({**facts, "peak_anonymous_bytes": peaks, **({"mmproj": mmproj} if mmproj else {})})
    else:
        _print_table(output, rows)
        if known := [f"{part} {peak / 1e6:,.0f} MB" for part, peak in peaks.items() if peak is not None]:
            stdout.print(f"peak anonymous memory: {', '.join(known)}")


def _remarks(row: dict[str, Any]) -> Iterator[str]:
    """What differs from what was asked for, and why."""
    if fallback := row.get("fallback"):
        yield (
            f"{len(fallback)} tensors have rows that are not a multiple of the type's block and were stored "
            f"in a larger type, first {fallback[0]}"
        )
    for island in row.get("islands", ()):
        yield (
            f"{len(island['nodes'])} operations stay in float32, as {island['at']} reaches "
            f"{island['largest']:.6g}"
            + ("; this attention cannot be fused" if island["in_attention"] else "")
        )
    if kept := row.get("kept_layers"):
        yield (
            f"{len(kept)} of {row['linear_layers']} linear layers are not int8, which would cost their input "
            f"too much, first {kept[0]}"
        )


def _print_table(output: Path, rows: list[dict[str, Any]]) -> None:
    table = Table(title=str(output), title_justify="left")
    for heading in ("part", "variant", "bytes", "status", "against the checkpoint"):
        table.add_column(heading, justify="right" if heading == "bytes" else "left")
    for row in rows:
        table.add_row(row["part"], row["name"], f"{row['bytes']:,}", row["status"], _equality(row))
    stdout.print(table)


def _equality(row: dict[str, Any]) -> str:
    if row["part"] == "vision":
        figures = row.get("rounded") or row["onnxruntime"]
        return f"NMSE {figures['nmse']:.1e}, SNR {figures['snr_db']:.0f} dB"
    if row["lowest_snr_db"] is None:
        return "bit-equal" if row["name"] in ("f32", "ov_f32") else "bit-equal once rounded"
    return f"worst tensor {row['lowest_snr_db']:.1f} dB"
