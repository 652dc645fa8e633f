"""The card of a bundle: all of it from its manifest, its parity/ folder, its checkpoint and given results."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.checkpoint.hub import parse_name
from tinyllava_edge.runtimes.serve.errors import without_paths

from .document import Code, Document, Line, Rows, Section
from .parity import parity_tables
from .results import accuracy_rows, speed_section
from .source import UNKNOWN, Origin, find_origin

_TAGS = ("tinyllava", "vision-language-model", "edge")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a card is made of besides the bundle.

    Attributes:
        name: that stands in the title and in the commands.
        checkpoint: where it is, in the place of what the bundle says.
        bench: reports.
        evals: files with what `eval --json` printed.
    """

    name: str
    checkpoint: str | None = None
    bench: Sequence[Path] = ()
    evals: Sequence[Path] = ()


def build_card(bundle: Bundle, asked: Asked) -> tuple[Document, Origin | None]:
    """The card, and the checkpoint that it is of, where that is at hand.

    Raises:
        BundleError: a file of parity/ is damaged.
        CheckpointError: `asked.checkpoint` cannot be read.
        DataError: a report or a result is none.
        UsageError: one of them, or the checkpoint, is of another model.
    """
    origin = find_origin(bundle, asked.checkpoint)
    speed = [speed_section(bundle, path) for path in asked.bench]
    scores = [row for path in asked.evals for row in accuracy_rows(bundle, path)]
    parity = list(parity_tables(bundle))
    document = Document(
        title=asked.name,
        metadata=dict(_metadata(bundle, origin)),
        missing=list(_missing(bundle, origin, speed=bool(speed), scores=bool(scores), parity=bool(parity))),
        sections=[
            _what_it_is(bundle),
            _run_it(bundle, asked.name),
            _parts(bundle, origin),
            _prompt(bundle),
            _variants(bundle),
            Section(
                "Equal to the checkpoint",
                [line for line, _ in parity] or ["No result of export or verify lies in the bundle."],
                [table for _, table in parity if table is not None],
            ),
            *speed,
            *(
                [Section("Accuracy", ["In brackets the 95 % interval, over pictures."], [Rows(scores)])]
                * bool(scores)
            ),
            _licences(bundle, origin),
            _made_with(bundle),
        ],
    )
    if document.missing:
        said = Section("Not known", document.missing)
        document = Document(**{**vars(document), "sections": [*document.sections, said]})
    return document, origin


def _metadata(bundle: Bundle, origin: Origin | None) -> Iterator[tuple[str, str | Sequence[str]]]:
    source = bundle.manifest.source
    yield "license", (origin.licence if origin else "") or UNKNOWN
    yield "library_name", "tinyllava-edge"
    yield "pipeline_tag", "image-text-to-text"
    yield "tags", [*_TAGS, *sorted({variant.target for variant in bundle.manifest.variants})]
    parsed = parse_name(source.repository)
    if parsed is not None and parsed[1] is None:
        yield "base_model", source.repository
        yield "base_model_relation", "quantized"


def _what_it_is(bundle: Bundle) -> Section:
    source = bundle.manifest.source
    came: list[str | Code] = ["Exported from the checkpoint ", Code(without_paths(source.name))]
    if source.repository:
        came += [", ", Code(source.repository), " of the hub at commit ", Code(source.revision or UNKNOWN)]
    came += [" (", Code(source.layout), f", sha256 {source.checkpoint_sha256[:16]}...)."]
    return Section(
        "What it is",
        [
            "A bundle of tinyllava-edge: a vision-language model that answers questions about pictures, cut "
            "into a vision tower with its connector, as ONNX, and a language model, as GGUF or OpenVINO, "
            "with the tensors that prove it equal to its checkpoint. Nothing in it can be executed.",
            came,
            ["SHA-256 of manifest.json, which has those of all files: ", Code(bundle.manifest_sha256)],
        ],
    )


def _run_it(bundle: Bundle, name: str) -> Section:
    given = shlex.quote(name)
    return Section(
        "Run it",
        ["With tinyllava-edge installed:"],
        shell=[
            f'tinyllava-edge run {given} photo.jpg "What is this?"',
            f'tinyllava-edge ask {given} "What is this?" photos/ -o answers.jsonl',
            f"tinyllava-edge serve {given}",
            f"tinyllava-edge verify {given}",
        ],
    )


def _parts(bundle: Bundle, origin: Origin | None) -> Section:
    names = origin.names if origin else {}
    rows = [
        {
            "part": name.replace("_", " "),
            "architecture": Code(part.architecture),
            "parameters": f"{part.parameters:,}",
            "in the checkpoint": Code(part.dtype),
            "from": Code(without_paths(names[name])) if name in names else "-",
        }
        for name, part in bundle.manifest.parts.items()
    ]
    said = "The last column is what config.json names: a repository, or a name or path of its author."
    return Section("Parts", [said] * bool(names), [Rows(rows)] * bool(rows))


def _prompt(bundle: Bundle) -> Section:
    manifest = bundle.manifest
    vision, template, how = manifest.vision, manifest.prompt.template, manifest.vision.preprocessing
    facts: dict[str, Line] = {
        "pixels": f"{vision.image_size} x {vision.image_size}, {how.aspect}, {how.resize}",
        "visual tokens of a picture": ", ".join(map(str, manifest.budgets)),
        "layer of the tower": str(vision.feature_layer),
        "context": f"{manifest.language.context_length} positions",
        "vocabulary": str(manifest.language.vocab_size),
        "template": [Code(template.name), " (", Code(manifest.prompt.template_reason), ")"],
        "system text": Code(template.system) if template.system.strip() else "none",
        "question": Code(template.question),
        "answer": Code(template.answer),
        "end of an answer": [Code(template.end), f", ids {', '.join(map(str, manifest.prompt.stop_ids))}"],
        "first id": "none" if manifest.prompt.bos_id is None else str(manifest.prompt.bos_id),
    }
    return Section("Pictures and prompt", tables=[Rows([{"what": k, "value": v} for k, v in facts.items()])])


def _variants(bundle: Bundle) -> Section:
    whole = sum(entry.size for entry in bundle.manifest.files)
    return Section(
        "Variants",
        [f"All files: {whole:,} bytes. A device needs one variant of each part: tinyllava-edge prune."],
        [Rows([_variant_row(bundle, variant) for variant in bundle.manifest.variants])],
    )


def _variant_row(bundle: Bundle, variant: Variant) -> Mapping[str, Line]:
    return {
        "part": variant.part,
        "variant": Code(variant.name),
        "format": variant.target,
        "bytes": f"{bundle.variant_bytes(variant):,}",
        "status": variant.status,
        "files": Code(" ".join(variant.files)),
    }


def _licences(bundle: Bundle, origin: Origin | None) -> Section:
    whole = (origin.licence if origin else "") or UNKNOWN
    rows: list[Mapping[str, Line]] = [
        {
            "what": "the checkpoint",
            "name": Code(without_paths(bundle.manifest.source.name)),
            "licence": Code(whole),
        }
    ]
    for part, name in (origin.names if origin else {}).items():
        known = origin.licences.get(name, UNKNOWN) if origin else UNKNOWN
        rows.append(
            {"what": part.replace("_", " "), "name": Code(without_paths(name)), "licence": Code(known)}
        )
    lines: list[Line] = [
        "As the metadata of README.md of the checkpoint, and of the repositories that it names, say; "
        "unknown is what none of them that is at hand says."
    ]
    if origin and origin.notices:
        names = ", ".join(path.name for path in origin.notices)
        lines.append(["The checkpoint comes with ", Code(names), ", which holds for these files, too."])
    return Section("Licences", lines, [Rows(rows)])


def _made_with(bundle: Bundle) -> Section:
    versions = (f"{name} {version}" for name, version in bundle.manifest.versions.items())
    return Section("Made with", [Code(", ".join(versions))] if bundle.manifest.versions else ["Not said."])


def _missing(
    bundle: Bundle, origin: Origin | None, *, speed: bool, scores: bool, parity: bool
) -> Iterator[str]:
    if origin is None:
        yield "The checkpoint was not at hand: sources and licences of the parts are unknown (--checkpoint)."
    elif not origin.licence:
        yield "The checkpoint's README.md states no licence."
    if not parity:
        yield "No figures of parity: tinyllava-edge verify measures them."
    if not speed:
        yield "No figures of speed: tinyllava-edge bench measures them (--bench)."
    if not speed and not scores:
        yield "No figures of accuracy: tinyllava-edge eval measures them (--eval)."
