"""A grid, as YAML -> the options of `train` that each cell has, and those of `eval` for all.

The keys are the two commands' own options, so that whatever `train` takes can be an axis.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from tinyllava_edge.benchmarks.evals.cli import evaluate
from tinyllava_edge.checkpoint.hub import HUB
from tinyllava_edge.errors import UsageError
from tinyllava_edge.train.asked import ASSEMBLED
from tinyllava_edge.train.cli import train
from tinyllava_edge.train.recipe import names, nearest
from tinyllava_edge.train.recipe_file import parse_yaml
from tinyllava_edge.user_files import read_user_file

MAX_BYTES = 64 << 10
Options = dict[str, Any]
Commands = Mapping[str, tuple[Any, str, str]]  # option -> type of its value, how it is given, how put off
PARTS = ("tower", "llm", "second_tower", "tokenizer")
_NAMED = (*PARTS, "from", "recipe")  # whose value may be a path, or a name
# What the runner gives itself, what trains nothing, and what leaves nothing to judge.
_NOT_TRAIN = (
    "output check preview samples plan memory tflops positions rows gpus resume force json keep_adapter"
)
_NOT_EVAL = "bundle checkpoint blind shard merge answers submission resume force check skip_bad json"


def _options_of(command: Callable[..., None], without: str) -> Commands:
    found = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, info, *_ = get_args(parameter.annotation)
        kind = kind if info.min is None else Annotated[kind, Field(ge=info.min)]
        declared = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
        long = next((name for name in declared if name.startswith("--")), f"--{parameter.name}")
        on, _, off = long.replace("_", "-").partition("/")
        found[on.removeprefix("--").replace("-", "_")] = (kind, on, off)
    return {name: option for name, option in found.items() if name not in without.split()}


TRAIN, EVAL = _options_of(train, _NOT_TRAIN), _options_of(evaluate, _NOT_EVAL)


def words(command: Commands, options: Options) -> list[str]:
    """Options as words of the command line."""
    found: list[str] = []
    for key, value in options.items():
        _, on, off = command[key]
        if isinstance(value, bool):
            found += filter(None, [on if value else off])
        else:
            for each in value if isinstance(value, list) else [value]:
                found += [on, str(each)]
    return found


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _model(command: Commands, base: type[BaseModel] = _Strict) -> Any:
    """Of a command's options, none of which must be there; one path does for a list of them."""

    def listed(cls: type, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    lists = [key for key, (kind, *_) in command.items() if "list[" in str(kind)]
    checks: Any = {"listed": field_validator(*lists, mode="before")(classmethod(listed))}
    fields: Any = {key: (kind | None, None) for key, (kind, *_) in command.items()}
    return create_model("Options", __base__=base, __validators__=checks, **fields)


_Stage, _Judge = _model(TRAIN), _model(EVAL)


class _Own(_Strict):
    """Keys of a cell that `train` does not have.

    Attributes:
        fraction: of the records of each file of data, by `--mix`. A smaller one lies within a larger one:
            both begin one order, which the seed draws (`train.mix.draw`).
        pretrain: options of a stage before, which has the parts and the seed of the cell.
    """

    fraction: float = Field(default=1.0, gt=0, le=1)
    pretrain: _Stage | None = None  # type: ignore[valid-type]


_Cell = _model(TRAIN, _Own)


class _File(_Strict):
    summary: str = ""
    base: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    eval: _Judge  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a grid says.

    Attributes:
        cells: of each the value of every axis, as text, and the options of its trainings, in their order; a
            later one goes on from the one before.
        judge: options of `eval`.
    """

    path: Path
    summary: str
    cells: tuple[tuple[Mapping[str, str], tuple[Options, ...]], ...]
    judge: Options


def read_grid(path: Path, *, max_cells: int) -> Grid:
    """Read a grid; paths in it are relative to its folder.

    Raises:
        UsageError: not YAML, a key that is not known (the message has the nearest), a value that is no value
            of its option, no cell, or more than `max_cells`.
    """
    text = read_user_file(path, most=MAX_BYTES, error=UsageError)
    file = _validated(_File, parse_yaml(text, path), f"{path}: ")
    _validated(_Cell, file.base, f"{path}: base.")
    for axis, values in file.axes.items():
        if axis not in _Cell.model_fields:
            raise UsageError(f"{path}: axes.{axis}: no such key.{nearest(axis, _Cell.model_fields)}")
        if not values:
            raise UsageError(f"{path}: 0 cells: axes.{axis} has no value. Give it some, or leave it out.")
    count = prod(map(len, file.axes.values()))
    if count > max_cells:
        sizes = " x ".join(f"{len(values)} {axis}" for axis, values in file.axes.items())
        raise UsageError(
            f"{path}: {count:,} cells ({sizes}), expected {max_cells} at most. Give fewer values, or "
            f"--max-cells {count}."
        )
    judge = _resolved(file.eval.model_dump(exclude_none=True), path.parent)
    return Grid(path=path, summary=file.summary, cells=tuple(_cells(path, file)), judge=judge)


def _cells(path: Path, file: _File) -> Iterator[tuple[Mapping[str, str], tuple[Options, ...]]]:
    seen = set()
    for values in product(*file.axes.values()):
        given, axes = dict(file.base), {}
        for axis, value in zip(file.axes, values, strict=True):
            # A mapping that has the axis among its keys is several options; `pretrain` is a mapping itself.
            given |= value if isinstance(value, dict) and axis in value else {axis: value}
            axes[axis] = _label(axis, value)
        at = f"{path}: {', '.join(f'axes.{axis} {label}' for axis, label in axes.items())}: "
        if (label := tuple(axes.values())) in seen:
            raise UsageError(f"{at}is there twice. Leave one out.")
        seen.add(label)
        yield axes, _stages(_validated(_Cell, given, at).model_dump(exclude_none=True), path.parent, at)


def _stages(options: Options, folder: Path, at: str) -> tuple[Options, ...]:
    fraction, pretrain = options.pop("fraction"), options.pop("pretrain", None)
    options = _resolved(options, folder)
    if fraction < 1:
        weights = options.get("mix") or ",".join("1" * len(options.get("data", ())))
        try:
            options["mix"] = ",".join(f"{float(weight) * fraction:.12g}" for weight in weights.split(","))
        except ValueError:
            raise UsageError(f"{at}fraction {fraction:g} is of `data`, with numbers in `mix`.") from None
    if pretrain is None:
        return (options,)
    of_first = ("from", "sources", "allow_pickle", *ASSEMBLED)  # a later one has these from its checkpoint
    parts = {key: options.pop(key) for key in of_first if key in options}
    seed = {key: options[key] for key in ("seed",) if key in options}
    return {**seed, **_resolved(pretrain, folder), **parts}, options


def _resolved(options: Options, folder: Path) -> Options:
    """The same with paths seen from here."""

    def seen(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [seen(key, each) for each in value]
        if key in _NAMED:
            is_path = value not in names() and (folder / value).exists()
        else:
            is_path = isinstance(value, Path) and str(value) != HUB
        if is_path:
            return os.path.abspath(folder / value)
        return str(value) if isinstance(value, Path) else value

    return {key: seen(key, value) for key, value in options.items()}


def _label(axis: str, value: Any) -> str:
    if isinstance(value, dict):
        rest = [f"{key}={_label(key, each)}" for key, each in value.items() if key != axis]
        return " ".join(([_label(axis, value[axis])] if axis in value else []) + rest)
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _validated(model: Any, values: Options, at: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        found = "" if isinstance(first["input"], dict) else f", found {first['input']!r:.60}"
        what = f"{first['msg']}{found}."
        if first["type"] == "extra_forbidden":
            above, key = str(first["loc"][0]), str(first["loc"][-1])
            inner = {"eval": _Judge, "pretrain": _Stage}.get(above, model) if first["loc"][1:] else model
            what = f"no such key.{nearest(key, inner.model_fields)}"
        raise UsageError(f"{at}{place}: {what} docs/training.md#ablations has the keys.") from None
