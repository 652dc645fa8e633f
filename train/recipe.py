"""A recipe: what is trained and how, as YAML; `train --recipe NAME|FILE`. Flags go before what it says.

Those in `recipes/` mirror upstream's scripts, key by key (docs/sources/upstream_recipes.md#scripts).
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.errors import PromptError, UsageError
from tinyllava_edge.prompt import template_named
from tinyllava_edge.user_files import read_user_file

from .mix import MOST, DataFile
from .recipe_file import parse_yaml
from .training_options import Grid, How, Part, Precision, Scheduler

FOLDER = Path(__file__).with_name("recipes")
ANY = "any"  # of `families`: what counts for those that are not named
MAX_BYTES = 64 << 10
MAX_PARENTS = 5
_OF_A_FAMILY = ("extends", "families", "mix", "starts", "summary")  # what a family has not of its own


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Mirrors(_Strict):
    """What of somebody else's code a recipe is made after; paths are in the repository at the commit."""

    repository: str
    commit: str = Field(pattern="[0-9a-f]{7,40}")
    script: str
    driver: str | None = None  # names the parts and calls the script


class PartTuning(_Strict):
    """How one part is trained: see `training_options.Tuning`."""

    how: Literal["frozen", How]
    from_layer: int | None = Field(default=None, ge=0)
    learning_rate: float | None = Field(default=None, gt=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0, lt=1)


class LoraSizes(_Strict):
    """Of every low-rank update."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)


class MixedFile(_Strict):
    """A data file of several: see `mix.DataFile`. Paths are relative to the recipe's folder."""

    data: str
    images: str | None = None
    weight: float = Field(default=1.0, gt=0, le=MOST)


class Recipe(_Strict):
    """One stage of a training. What is not said is left to the command's own default.

    Attributes:
        mirrors: what it is made after; None where it is somebody's own.
        differs: keys that have another value there -> why.
        starts: from `--from CHECKPOINT`, or from `--tower` and `--llm`.
        llm, tower, second_tower, tokenizer: names of the hub, for what is not given; of `starts: parts`
            only, as the seven keys of assembly that follow.
        token_budgets: numbers of visual tokens that the connector learns at once.
        template: null is the checkpoint's own.
        tune: a part that is not named is frozen; `full` is short for `{how: full}`.
        mix: the data, where no --data is given.
        global_batch_size: conversations a step; accumulation follows from the batch and the processes.
    """

    summary: str
    mirrors: Mirrors | None = None
    differs: dict[str, str] = {}
    starts: Literal["parts", "checkpoint"] = "checkpoint"

    llm: str | None = None
    tower: str | None = None
    second_tower: str | None = None
    tokenizer: str | None = None
    connector: str | None = None
    feature_layer: int | None = None
    feature_select: Literal["patch", "cls_patch"] | None = None
    image_aspect_ratio: Literal["square", "pad"] | None = None
    num_queries: int | None = Field(default=None, ge=1)
    num_resampler_layers: int | None = Field(default=None, ge=1)
    connector_factor: int | None = Field(default=None, ge=1)

    token_budgets: list[int] | None = Field(default=None, min_length=1)
    template: str | None = None
    tune: dict[Part, PartTuning]
    lora: LoraSizes | None = None
    model_max_length: int | None = Field(default=None, ge=1)
    mix: list[MixedFile] | None = Field(default=None, min_length=1)

    num_train_epochs: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    global_batch_size: int | None = Field(default=None, ge=1)
    per_device_train_batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, lt=1)
    lr_scheduler_type: Scheduler | None = None
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0, lt=1)
    adam_beta1: float | None = Field(default=None, ge=0, lt=1)
    adam_beta2: float | None = Field(default=None, ge=0, lt=1)
    adam_epsilon: float | None = Field(default=None, gt=0)
    max_grad_norm: float | None = Field(default=None, ge=0)
    precision: Precision | None = None
    tf32: bool | None = None
    gradient_checkpointing: bool | None = None
    group_by_modality_length: bool | None = None
    quantize_aware: list[Grid] | None = None
    distill: bool | None = None
    seed: int | None = Field(default=None, ge=0)

    @field_validator("tune", mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {part: {"how": how} if isinstance(how, str) else how for part, how in value.items()}

    @field_validator("template")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        try:
            return value if value is None else template_named(value).name
        except PromptError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        for part, tuning in self.tune.items():
            if tuning.from_layer is not None and (part != "vision_tower" or tuning.how != "full"):
                raise ValueError("from_layer is of a vision_tower that is trained in full")
            if tuning.how == "qlora" and part != "language_model":
                raise ValueError(f"qlora is for the language model; give {part} lora")
        if all(tuning.how == "frozen" for tuning in self.tune.values()):
            raise ValueError("tune trains no part")
        if self.starts == "checkpoint" and (set_keys := sorted(ASSEMBLY & self.given.keys())):
            raise ValueError(f"{set_keys[0]} is of `starts: parts`: a checkpoint says it itself")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What it says, by key."""
        return {key: value for key, value in self if value is not None}


ASSEMBLY = frozenset(
    ("llm", "tower", "second_tower", "tokenizer", "connector", "feature_layer", "feature_select")
) | {"image_aspect_ratio", "num_queries", "num_resampler_layers", "connector_factor"}


class RecipeFile:
    """A recipe for each family of language models that it is for.

    Attributes:
        name: as it was asked for.
        families: those named; `any` among them is for all others. Empty is one recipe for all.
    """

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        overlays = values.pop("families", None) or {}
        if not isinstance(overlays, dict) or not all(isinstance(each, dict) for each in overlays.values()):
            raise UsageError(f"{name}: families: expected a mapping of families, each a mapping of keys.")
        self.families = tuple(overlays)
        known = (*FAMILIES, ANY)
        for family, overlay in overlays.items():
            if family not in known:
                raise UsageError(f"{name}: families: {family!r} is not known. Known: {', '.join(known)}.")
            if own := [key for key in overlay if key in _OF_A_FAMILY]:
                raise UsageError(f"{name}: families.{family}: {own[0]} is the same for all; write it above.")
        self._recipes = {
            family: _validated(name, _merged(values, overlay), f"families.{family}." if overlay else "")
            for family, overlay in (overlays or {ANY: {}}).items()
        }

    def named(self, family: str) -> Recipe:
        """The recipe of a family.

        Raises:
            UsageError: it is for others.
        """
        found = self._recipes.get(family) or self._recipes.get(ANY)
        if found is None:
            fitting = [name for name in names() if name != self.name and open_recipe(name).fits(family)]
            raise UsageError(
                f"--recipe {self.name} is for {', '.join(self.families)}, and the language model is of "
                f"{family!r}. Recipes for it: {', '.join(fitting)}."
            )
        return found

    def fits(self, family: str) -> bool:
        """Whether there is a recipe for a family."""
        return family in self._recipes or ANY in self._recipes

    @property
    def mix(self) -> list[DataFile]:
        """Its data files, seen from the folder of the recipe; empty where it names none."""
        beside, found = Path(self.name).parent, self.any_recipe.mix or ()
        return [
            DataFile(path=beside / f.data, images=beside / (f.images or Path(f.data).parent), weight=f.weight)
            for f in found
        ]

    @property
    def any_recipe(self) -> Recipe:
        """One of them, for what is the same in all: how it starts."""
        return next(iter(self._recipes.values()))


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def open_recipe(name_or_file: str) -> RecipeFile:
    """A recipe by name, or from a file: what is a path or ends with .yaml.

    Raises:
        UsageError: no such recipe, or it is not what this page says; one line with file and key.
    """
    return RecipeFile(name_or_file, _values(name_or_file, Path(), 0))


def _values(name_or_file: str, beside: Path, depth: int) -> dict[str, Any]:
    """A file's mapping over those of what it extends."""
    path = _path(name_or_file, beside)
    text = read_user_file(path, most=MAX_BYTES, error=UsageError)
    values = parse_yaml(text, path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str) or depth == MAX_PARENTS:
        raise UsageError(
            f"{path}: extends is {parent!r:.60}, expected the name or file of a recipe, "
            f"{MAX_PARENTS} deep at most."
        )
    above = _values(parent, path.parent, depth + 1)
    families = values.pop("families", above.pop("families", None))
    return {**_merged(above, values), "families": families}


def _path(name_or_file: str, beside: Path) -> Path:
    if name_or_file in names():
        return FOLDER / f"{name_or_file}.yaml"
    path = beside / name_or_file
    if path.suffix in (".yaml", ".yml") or len(Path(name_or_file).parts) > 1 or path.exists():
        return path
    raise UsageError(
        f"--recipe {name_or_file!r} is not known.{nearest(name_or_file, names())} Known: "
        f"{', '.join(names())}; or a file that ends with .yaml."
    )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping within is merged key by key; null takes a key away."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _validated(name: str, values: dict[str, Any], at: str) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        what = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "extra_forbidden":
            what = f"no such key.{nearest(str(first['loc'][-1]), _keys(first['loc'][:-1]))}".rstrip(".")
        elif "input" in first and not isinstance(first["input"], dict):
            what += f", found {first['input']!r:.60}"
        raise UsageError(
            f"{name}: {at}{place or 'recipe'}: {what}. docs/training.md#recipes has the keys."
        ) from None


def _keys(place: tuple[Any, ...]) -> list[str]:
    """The keys that there are at a place of a recipe."""
    model: type[BaseModel] = Recipe
    inner: dict[str, Any] = {"mirrors": Mirrors, "lora": LoraSizes, "tune": PartTuning, "mix": MixedFile}
    for step in place:
        model = inner.get(str(step), model)
    return list(model.model_fields)


def nearest(word: str, known: Any) -> str:
    """A sentence that names the likeliest of the words that are known; "" where none is like it."""
    near = get_close_matches(str(word), [*known], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
