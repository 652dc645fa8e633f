"""The rivals that `bench --peers` knows, and a row of a comparison for each.

A row is a process like a cell's own (`worker_process.py`) under the rival's interpreter; it hears and says
the same lines. docs/sources/peers.md has what each rival does, and where that is from.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError, UsageError
from tinyllava_edge.runtimes.threads import thread_budget

from .environments import HOME, SERVER, Environment
from .lines import Task
from .prepared import Prepared, converted, find_checkpoint_of, find_mmproj, gives_token

ALL = "all"
# Makes this folder a package of its own, so that nothing of ours is imported in a rival's environment.
_START = (
    "import sys, types; package = types.ModuleType('peers'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['peers'] = package; from peers.lines import main; main('peers')"
)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A rival.

    Attributes:
        module: file of this folder that runs it.
        environment: whose interpreter that takes; "" for the one that bench itself runs under.
        settings: what the module is told.
        reads: "gguf" for the bundle's own language variants and an mmproj, one row for each variant;
            "checkpoint" for a LlavaForConditionalGeneration; "converted" for what its module makes of one.
    """

    module: str
    environment: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: str


RIVALS: Mapping[str, Rival] = {
    "mtmd": Rival(module="mtmd", reads="gguf"),
    "llama-server": Rival(module="llama_server", reads="gguf"),
    "transformers-fp32": Rival(
        module="transformers_llava",
        environment="transformers",
        settings={"dtype": "float32"},
        reads="checkpoint",
    ),
    "transformers-bf16": Rival(
        module="transformers_llava",
        environment="transformers",
        settings={"dtype": "bfloat16"},
        reads="checkpoint",
    ),
    "vllm": Rival(
        module="vllm_llava", environment="vllm", settings={"dtype": "bfloat16"}, reads="checkpoint"
    ),
    "openvino-int8": Rival(
        module="openvino_llava", environment="openvino", settings={"bits": 8}, reads="converted"
    ),
    "openvino-int4": Rival(
        module="openvino_llava", environment="openvino", settings={"bits": 4}, reads="converted"
    ),
    "optimum-onnx": Rival(module="onnx_decoder", environment="optimum-onnx", reads="converted"),
}


@dataclass(frozen=True, kw_only=True)
class RivalCell:
    """A rival's row.

    Attributes:
        name: of the row: the rival's, and the language variant where it reads the bundle's.
        rival: its name in `RIVALS`.
        interpreter: that runs it.
        task: what it opens and answers.
        weights: the files that it reads its weights from.
    """

    name: str
    rival: str
    interpreter: Path
    task: Task
    weights: tuple[Path, ...]

    def command(self, request: Request) -> list[str]:
        """What starts its process; the request is in its task."""
        return [*start_line(self.interpreter), json.dumps(asdict(self.task))]

    def last_words(self) -> str:
        """The end of what its libraries printed."""
        log = Path(self.task.log)
        said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        return f"it said last: {next(filter(str.strip, reversed(said)), 'nothing').strip()[:300]}"

    @property
    def size_bytes(self) -> int:
        """Of its weights on disk."""
        return sum(path.stat().st_size for path in self.weights)

    @property
    def needed_bytes(self) -> int:
        """What its weights take in memory: a checkpoint's are widened to the rival's own type."""
        wide = self.task.settings.get("dtype") == "float32" and "checkpoint" in self.task.files
        return self.size_bytes * (2 if wide else 1)


@dataclass(frozen=True)
class Absent:
    """A row that could not be measured, and why, with the line that mends it."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where rivals and their files are.

    Attributes:
        home: what `make peers` made.
        checkpoint: a LlavaForConditionalGeneration with the bundle's weights, or None for the bundle's own.
        mmproj: the bundle's vision tower for llama.cpp, likewise.
    """

    home: Path = HOME
    checkpoint: Path | None = None
    mmproj: Path | None = None


def start_line(interpreter: Path) -> list[str]:
    """What starts `lines.main` under an interpreter that knows nothing of this package."""
    return [str(interpreter), "-c", _START, str(Path(__file__).parent)]


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Rivals by their names, all for "all".

    Raises:
        UsageError: there is no such rival.
    """
    if ALL in names:
        return tuple(RIVALS)
    if unknown := [name for name in names if name not in RIVALS]:
        raise UsageError(f"--peers {unknown[0]}: known are {', '.join(RIVALS)} and {ALL}.")
    return tuple(names)


def plan_rivals(
    names: Sequence[str], bundle: Bundle, cells: Sequence[Cell], places: Places, prepared: Prepared
) -> Iterator[RivalCell | Absent]:
    """A row for each rival, or why there is none; nothing is opened yet.

    Args:
        names: of `RIVALS`.
        bundle: whose model the rivals answer with.
        cells: the bundle's own, for threads and for the language variants that mtmd reads too.
        places: where things are.
        prepared: the request as rivals get it.
    """
    for name in names:
        try:
            yield from _rows(name, bundle, cells, places, prepared)
        except (UsageError, BundleError) as error:  # a file that is missing, or is no GGUF
            yield Absent(name, str(error))


def _rows(
    name: str, bundle: Bundle, cells: Sequence[Cell], places: Places, prepared: Prepared
) -> Iterator[RivalCell]:
    """Rows of one rival.

    Raises:
        UsageError: its environment or a file of its is missing.
    """
    rival = RIVALS[name]
    interpreter = _interpreter(rival, places)
    threads = thread_budget(cells[0].options.threads)
    for suffix, files in _files(name, rival, bundle, cells, places):
        fields, tokens = prepared.fields, bundle.manifest.vision.num_tokens
        if "mmproj" in files and gives_token(Path(files["mmproj"]), bundle):
            fields, tokens = prepared.without_last_token(), tokens + 1
        paths = [path for file in files.values() for path in _weights(Path(file))]
        task = Task(
            rival=rival.module,
            files={**files, **_program(rival, places)},
            settings=dict(rival.settings),
            threads=threads,
            context_length=bundle.manifest.language.default_context_length,
            tokens_per_picture=tokens,
            log=str(prepared.folder / f"{name}{suffix}.log"),
            **fields,
        )
        yield RivalCell(
            name=f"{name}{suffix}", rival=name, interpreter=interpreter, task=task, weights=tuple(paths)
        )


def _interpreter(rival: Rival, places: Places) -> Path:
    if not rival.environment:
        return Path(sys.executable)
    environment = Environment(rival.environment, places.home / rival.environment)
    if fault := environment.fault():
        raise UsageError(fault)
    return environment.python.absolute()


def _program(rival: Rival, places: Places) -> dict[str, str]:
    """What is no package: the server's program."""
    if rival.module != "llama_server":
        return {}
    environment = Environment(SERVER, places.home / SERVER)
    program = environment.root / SERVER
    if not program.is_file():
        raise UsageError(f"no {program}: {environment.mend}")
    return {"program": str(program.absolute())}


def _files(
    name: str, rival: Rival, bundle: Bundle, cells: Sequence[Cell], places: Places
) -> Iterator[tuple[str, dict[str, str]]]:
    """What each row of a rival reads, with what tells it from the rival's others."""
    if rival.reads == "gguf":
        mmproj = find_mmproj(bundle, places.mmproj)
        names = dict.fromkeys(cell.options.language for cell in cells if cell.options.language)
        variants = [bundle.variant("language", language) for language in names]
        if not (ggufs := [variant for variant in variants if variant.target == "gguf"]):
            raise UsageError(f"{name} reads GGUF, and no row has such a variant: name one with --language.")
        for variant in ggufs:
            gguf = str(bundle.path(variant.files[0]))
            yield f" {variant.name}", {"gguf": gguf, "mmproj": str(mmproj)}
        return
    checkpoint = find_checkpoint_of(bundle, places.checkpoint)
    if rival.reads == "checkpoint":
        yield "", {"checkpoint": str(checkpoint)}
        return
    environment = Environment(rival.environment, places.home / rival.environment)
    start = [*start_line(environment.python.absolute()), "convert", rival.module]
    model = converted(name, start, checkpoint, places.home / "models", dict(rival.settings))
    yield "", {"model": str(model), "checkpoint": str(checkpoint)}


def _weights(path: Path) -> Iterator[Path]:
    """Files of weights among what a row reads."""
    if path.is_file():
        yield path
    else:
        yield from (file for file in sorted(path.iterdir()) if file.suffix in _WEIGHT_SUFFIXES)


_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".onnx", ".data", ".onnx_data"}
