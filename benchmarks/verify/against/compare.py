"""Tell what the given files are, and hold each against the checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.language_gguf import LanguageSource, write_vocabulary_gguf
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.printable import printable

from .dumped import dump_findings
from .findings import STAGES, AgainstReport, Finding
from .gguf_fields import field_values
from .gguf_language import language_findings
from .mmproj_file import MmprojFile, is_mmproj
from .other_checkpoint import checkpoint_findings
from .vision_graph import VISION_XML, onnx_findings, openvino_findings

KNOWN = (
    "a language model's .gguf and an mmproj .gguf of llama.cpp, a vision tower's .onnx, an OpenVINO folder, "
    "a checkpoint's folder, or dumped tensors in an .npz"
)
_PICTURES = (0, 3, 5)  # square, and two that a resize shows on
_MAGIC = {"GGUF": b"GGUF", "onnx": b"\x08", "npz": b"PK"}
OnFile = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the files are held against."""

    source: LanguageSource
    reference: CheckpointReference


def kind_of(path: Path) -> str:
    """What a file or folder is, by what is in it.

    Raises:
        UsageError: it is nothing of `KNOWN`, or not what its name says.
    """
    try:
        is_folder = path.is_dir()
        is_there = is_folder or path.is_file()  # a pipe would be waited for
    except OSError as error:
        raise UsageError(f"--against {path}: {error.strerror}. Give {KNOWN}.") from None
    if not is_there:
        raise UsageError(f"--against {path}: no such file or folder. Give {KNOWN}.")
    if is_folder:
        if (path / VISION_XML).is_file():
            return "OpenVINO folder"
        if (path / "config.json").is_file():
            return "checkpoint"
        raise UsageError(f"--against {path}: has neither {VISION_XML} nor config.json. Give {KNOWN}.")
    with path.open("rb") as file:
        start = file.read(4)
    suffix = path.suffix.lower()
    if start == _MAGIC["GGUF"] and suffix not in (".onnx", ".npz"):
        return "mmproj" if is_mmproj(field_values(path)) else "GGUF language model"
    for wanted, magic, kind in ((".onnx", _MAGIC["onnx"], "ONNX tower"), (".npz", _MAGIC["npz"], "dump")):
        if suffix == wanted and start.startswith(magic):
            return kind
    raise UsageError(
        f"--against {path}: not what its name says: it begins with {start!r}, which is no "
        f"{suffix.removeprefix('.') or 'known format'}. Give {KNOWN}."
    )


def compare_against(
    files: Sequence[Path], given: Given, on_file: OnFile = lambda name: None
) -> AgainstReport:
    """Hold every file against the checkpoint.

    Args:
        files: of `KNOWN`; an mmproj file and its language model together.
        given: the checkpoint that they were made from.
        on_file: called with a few words at the start of each.

    Raises:
        UsageError: a file is nothing of `KNOWN`, or not what it says.
    """
    kinds = {path: kind_of(path) for path in files}
    found: list[Finding] = []
    for path, kind in kinds.items():
        on_file(f"{kind} {path.name}")
        about_file = list(_findings(path, kind, kinds, given))
        if all(one.passed is None for one in about_file):
            raise UsageError(f"--against {path}: a {kind} with nothing in it to compare. Give {KNOWN}.")
        found += about_file
    order = sorted(found, key=lambda one: STAGES.index(one.stage))
    names = " + ".join(dict.fromkeys(kinds.values()))
    return AgainstReport(
        kind=names,
        files=tuple(map(str, files)),
        checkpoint=str(given.source.checkpoint),
        findings=tuple(order),
    )


def open_given(checkpoint: Checkpoint) -> Given:
    """Load the checkpoint once for all files."""
    assets = read_assets(checkpoint)
    source = LanguageSource(checkpoint=checkpoint, assets=assets, name=checkpoint.path.name)
    reference = CheckpointReference(checkpoint, num_tokens=1)
    return Given(source=source, reference=reference)


def _findings(path: Path, kind: str, kinds: dict[Path, str], given: Given) -> Iterator[Finding]:
    reference, assets = given.reference, given.source.assets
    if kind == "mmproj":
        yield from _mmproj(path, kinds, given)
    elif kind == "GGUF language model":
        yield from language_findings(path, field_values(path), given.source, reference)
    elif kind == "ONNX tower":
        yield from onnx_findings(path, reference)
    elif kind == "OpenVINO folder":
        yield from openvino_findings(path, reference, assets)
    elif kind == "dump":
        yield from dump_findings(path, reference, assets)
    else:
        read = given.source.checkpoint
        other = Checkpoint(path, sources=read.sources, allow_pickle=read.allow_pickle)
        yield from checkpoint_findings(other, reference, assets)


def _mmproj(path: Path, kinds: dict[Path, str], given: Given) -> Iterator[Finding]:
    """With the language model that was given beside it, or the checkpoint's own vocabulary."""
    beside = next((other for other, kind in kinds.items() if kind == "GGUF language model"), None)
    with TemporaryDirectory() as scratch:
        language = beside or Path(scratch, "vocabulary.gguf")
        if beside is None:
            write_vocabulary_gguf(language, given.source)
        yield from MmprojFile(path, language, given.reference, given.source.assets, _PICTURES).findings()


def findings_table(report: AgainstReport) -> Table:
    """Every finding for people."""
    table = Table(title=f"{report.kind} against {report.checkpoint}", title_justify="left", box=None)
    for column in ("stage", "of", "", "measured"):
        table.add_column(column, overflow="fold")
    fine = [one for one in report.findings if one.stage == "files" and one.passed]
    if fine:
        table.add_row("files", f"{len(fine)} values of the metadata", "ok", "")
    for one in report.findings:
        if one in fine:
            continue
        mark = {True: "ok", False: "DIFFERS", None: "-"}[one.passed]
        figures = ", ".join(f"{name} {value:.4g}" for name, value in one.figures.items())
        said = [part for part in (figures, one.gate if not one.passed else "", one.cause) if part]
        table.add_row(one.stage, printable(one.what), mark, printable("; ".join(said)))
    return table
