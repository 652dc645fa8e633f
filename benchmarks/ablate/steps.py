"""The steps of a grid, each under a key: the hash of all that decides its result.

Known by content are records, weights, configs and questions; a picture by its size and time, as a hash of
hundreds of thousands would take longer than many a training.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tinyllava_edge import __version__
from tinyllava_edge.atomic_files import pictures_read
from tinyllava_edge.benchmarks.evals.asked import read_benchmark, read_own
from tinyllava_edge.benchmarks.evals.opened import LANGUAGE, VISION
from tinyllava_edge.benchmarks.evals.questions import check_pictures
from tinyllava_edge.checkpoint.hub import HUB
from tinyllava_edge.errors import DataError, UsageError
from tinyllava_edge.export.options import ExportOptions, parse_names
from tinyllava_edge.prompt import template_named
from tinyllava_edge.runtimes.registry import choose_runtime
from tinyllava_edge.train.asked import ASSEMBLED, Asked, read_asked
from tinyllava_edge.train.mix import DataFile, pair_files
from tinyllava_edge.train.options import FinetuneOptions, parse_tune
from tinyllava_edge.train.parts import fetch_part
from tinyllava_edge.train.recipe import ANY, open_recipe
from tinyllava_edge.train.records import Data
from tinyllava_edge.train.rows import Rows
from tinyllava_edge.verified_files import sha256_of_file

from .grid import PARTS, Grid, Options

_MODELS, _FILES = (*PARTS, "from"), ("adapter", "deepspeed")
_READ = (".safetensors", ".json", ".model", ".txt", ".jinja")  # of a model's directory, and .bin if allowed
# What `train` and `eval` come to the same result with, and what stands in a key by its content.
_ASIDE = (
    *(*_MODELS, *_FILES, "data", "images", "mix", "recipe", "questions", "references", "limit"),
    *("eval_data", "eval_images", "sources", "save_every", "workers", "threads", "report_to"),
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of `train`.

    Attributes:
        key: of its result; the name of its files.
        options: of the command, models of the hub as the directories that they were downloaded to.
        before: stages that it goes on from, in their order; none where `options` say what it starts from.
    """

    key: str
    options: Options
    before: "tuple[Training, ...]"

    @property
    def stages(self) -> "tuple[Training, ...]":
        """Those before, and itself."""
        return (*self.before, self)

    @property
    def reads(self) -> Iterator[Path | None]:
        """What it reads of the user's, but for folders of pictures beside their data."""
        yield from (Path(self.options[key]) for key in (*_MODELS, *_FILES) if key in self.options)
        if self.options.get("sources", HUB) != HUB:
            yield Path(self.options["sources"])
        for file in (*_data_files(self.options), *_validation(self.options)):
            yield from (file.path, pictures_read(file.images, file.path))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of the axes' values, which stand in `axes` as text; `key` is of its score."""

    axes: Mapping[str, str]
    training: Training
    key: str

    @property
    def name(self) -> str:
        """What it is called."""
        return ", ".join(f"{axis} {value}" for axis, value in self.axes.items()) or "base"


def plan_cells(grid: Grid, *, weights: bool = True) -> list[Cell]:
    """Give every step its key; models of the hub are downloaded, without `weights` their configs.

    Raises:
        CheckpointError, DataError, UsageError: what is read is not there or damaged; the message names it.
    """
    judged, cells = _judge_facts(grid.judge), []
    for axes, stages in grid.cells:
        done: tuple[Training, ...] = ()
        for options in stages:
            done = (*done, _training(options, done, f"{grid.path}: ", weights))
        cells.append(Cell(axes=axes, training=done[-1], key=_key(done[-1].key, judged)))
    return cells


def judge_reads(judge: Options) -> Iterator[Path | None]:
    """What `eval` reads."""
    paths = {key: Path(judge[key]) for key in ("questions", "images", "data") if key in judge}
    yield from (paths.get("questions"), paths.get("data"), *map(Path, judge.get("references", ())))
    yield pictures_read(paths.get("images"), paths.get("questions"))


def started(options: Options, *, weights: bool) -> Asked:
    """What a first stage starts from, by its options and its recipe; errors as of `read_asked`."""
    names = ("from", "recipe", "sources", "allow_pickle", *ASSEMBLED)
    return _started(json.dumps({name: options.get(name) for name in names}), weights)


@cache
def _started(given: str, weights: bool) -> Asked:
    options = json.loads(given)
    return read_asked(
        options["from"],
        options["recipe"] and open_recipe(options["recipe"]),
        {key: options[name] for name, key in ASSEMBLED.items()},
        sources=options["sources"] and Path(options["sources"]),
        allow_pickle=bool(options["allow_pickle"]),
        weights=weights,
    )


def _training(options: Options, before: tuple[Training, ...], at: str, weights: bool) -> Training:
    if not before and not options.keys() & {"from", "tower", "llm", "recipe"}:
        raise UsageError(f"{at}nothing to start from. Give `from`, or `tower` and `llm`, in base or an axis.")
    if "tune" in options:
        parse_tune(options["tune"])
    if "template" in options:
        template_named(options["template"])
    pickled = options.get("allow_pickle", False)
    for key in options.keys() & _MODELS:
        part = fetch_part(options[key], f"{at}{key}", allow_pickle=pickled, weights=weights)
        options = {**options, key: str(part)}
    if not (files := _data_files(options)):
        raise UsageError(f"{at}no data. Give `data` in base or an axis, or a recipe with a mix.")
    recipe = open_recipe(options["recipe"]) if "recipe" in options else None
    start = None if before else started(options, weights=weights)
    read = () if start is None else start.parts.directories if start.parts else (start.start,)
    facts = {
        "before": before and before[-1].key,
        "start": [_content(path, pickled) for path in read if path is not None],
        "files": {key: _content(Path(options[key]), pickled) for key in _FILES if key in options},
        "sources": _sources(options),
        "data": [(_data(file.path, file.images), file.weight) for file in files],
        "validation": [_data(file.path, file.images) for file in _validation(options)],
        "recipe": recipe and {f: recipe.named(f).model_dump() for f in recipe.families or (ANY,)},
        "options": ({} if recipe else {"seed": 0}) | without(options, _ASIDE),
        "arithmetic": _arithmetic() if options.get("precision", "auto") == "auto" else None,
    }
    return Training(key=_key(facts), options=options, before=before)


def _data_files(options: Options) -> list[DataFile]:
    data, images = (list(map(Path, options.get(key, ()))) for key in ("data", "images"))
    recipe = options.get("recipe")
    return pair_files(data, images, options.get("mix")) or (open_recipe(recipe).mix if recipe else [])


def _validation(options: Options) -> list[DataFile]:
    data, images = ([Path(options[key])] if key in options else [] for key in ("eval_data", "eval_images"))
    return pair_files(data, images, None) if data else []


def _sources(options: Options) -> str | None:
    given = options.get("sources")
    return given if given in (None, HUB) else _content(Path(given), False)


def _arithmetic() -> str:
    """What `precision: auto` comes to on this machine."""
    from tinyllava_edge.train.tuning import arithmetic

    return arithmetic(FinetuneOptions(data=Path(), images=Path(), source=Path()))


def _judge_facts(judge: Options) -> list[Any]:
    """The questions, and how they are asked."""
    vision, language = judge.get("vision", VISION), judge.get("language", LANGUAGE)
    ExportOptions(vision=parse_names(vision), language=parse_names(language))
    for runtime in parse_names(judge.get("runtime", "")):
        choose_runtime(runtime)
    given = judge.keys() & {"questions", "images", "benchmark", "data"}
    if given == {"questions", "images"}:
        references = [Path(path) for path in judge.get("references", ())]
        asked = read_own(Path(judge["questions"]), Path(judge["images"]), references, judge.get("rule", ""))
    elif given == {"benchmark", "data"}:
        asked = read_benchmark(judge["benchmark"], Path(judge["data"]), judge.get("limit", 0))
    else:
        raise UsageError("eval: expected `questions` and `images`, or `benchmark` and `data`.")
    if asked.bad:
        raise DataError(f"{asked.file}: {len(asked.bad)} bad records. eval --check lists them.")
    if not any(question.answers for question in asked.questions):
        raise DataError(f"{asked.file}: no answers to score by. Give `references` in eval.")
    check_pictures(asked.questions)
    shown = [_state(q.image) if isinstance(q.image, Path) else q.picture_key for q in asked.questions]
    said = [(q.id, q.text, q.answers, q.type, q.rule) for q in asked.questions]
    return [without(judge, _ASIDE), _sources(judge), said, shown]


def without(options: Options, names: Iterable[str]) -> Options:
    """All but those of some names."""
    return {key: value for key, value in options.items() if key not in names}


def _key(*facts: Any) -> str:
    return hashlib.sha256(json.dumps([__version__, *facts], sort_keys=True).encode()).hexdigest()[:16]


@cache
def _content(path: Path, pickled: bool) -> str:
    """Of a file, or of all that is read of a model's directory."""
    read = (*_READ, ".bin") if pickled else _READ
    is_read = (each for each in path.rglob("*") if each.suffix in read and each.is_file())
    files = sorted(is_read) if path.is_dir() else [path]
    try:
        return _key([(each.relative_to(path).as_posix(), sha256_of_file(each)) for each in files])
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}. Check the path.") from None


@cache
def _data(path: Path, images: Path) -> str:
    records: Iterable[Any] = Data([DataFile(path=path, images=images)], [Rows(path)], None)
    digest = hashlib.sha256()
    for found in records:
        states = [_state(picture) for picture in getattr(found, "pictures", ())]
        digest.update(json.dumps([found.sha256, states]).encode())
    return digest.hexdigest()


def _state(picture: Path) -> tuple[int, int] | None:
    try:
        status = picture.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
