"""What the flags of `train` and a recipe say together -> options of a run. A flag goes before the recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.layouts import ADAPTER_CONFIG, TOKENIZER_FILES
from tinyllava_edge.checkpoint.names import fetch_checkpoint, fetch_sources
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.values import whole_number
from tinyllava_edge.console import note
from tinyllava_edge.errors import MissingExtraError, UsageError
from tinyllava_edge.extras import install_line

from .options import FinetuneOptions, LoraOptions, parse_tune
from .parts import Parts, fetch_part
from .ranks import world_size
from .recipe import ASSEMBLY, Recipe, RecipeFile
from .training_options import Part, TrainingOptions, Tuning

HINT = (
    "Give either --from CHECKPOINT (a directory, nano or a hub's owner/name) or --tower and --llm, a "
    "directory or owner/name each."
)
_OPTION = {  # of a recipe's keys that are not the option's name
    "num_resampler_layers": "--connector-layers",
}
_BATCH, _WHOLE, _GATHERED = "per_device_train_batch_size", "global_batch_size", "gradient_accumulation_steps"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One run, as the flags and the recipe say it.

    Attributes:
        start: checkpoint to start from; None where it is to be assembled from `parts`.
        values: by the keys of a recipe, those of flags put before those of the recipe.
        adapter: updates to go on from, whose sizes go before both.
        sources: where files are that the checkpoint only names.
    """

    start: Path | None
    parts: Parts | None
    values: Mapping[str, Any]
    adapter: Path | None = None
    sources: Path | None = None

    @property
    def tune(self) -> dict[Part, Tuning]:
        """How each part is trained that is not frozen."""
        return dict(self.values.get("tune") or parse_tune("connector+llm"))

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of visual tokens that the connector of `start` is to learn; see `parts` for theirs."""
        return self.values.get("token_budgets", ()) if self.parts is None else ()

    @property
    def lora(self) -> LoraOptions:
        """Sizes of the updates."""
        names = {field.name for field in fields(LoraOptions)}
        given = {name: value for name, value in self.values.items() if name in names}
        if self.adapter is not None:
            path = self.adapter / ADAPTER_CONFIG
            found = read_json_object(path)
            given |= {
                "rank": whole_number(found, "r", 0, path),
                "alpha": whole_number(found, "lora_alpha", 0, path),
            }
        return LoraOptions(**given)

    @property
    def training(self) -> TrainingOptions:
        """Batches, rates, arithmetic."""
        names = {field.name for field in fields(TrainingOptions)}
        given = {name: value for name, value in self.values.items() if name in names}
        return TrainingOptions(**{**given, **_gathered(self.values)})


def read_asked(
    source: str | None,
    recipe: RecipeFile | None,
    flags: Mapping[str, Any],
    *,
    sources: Path | None = None,
    allow_pickle: bool = False,
    weights: bool = True,
) -> Asked:
    """Find what the run starts from, downloading what is named of the hub, and the recipe of its family.

    Args:
        source: of --from.
        recipe: of --recipe.
        flags: by the keys of a recipe and of `Parts`; None is a flag that was not given.
        sources: of --sources.
        allow_pickle: download and read `.bin` weights.
        weights: download them, not the configs alone.

    Raises:
        UsageError: options that do not fit together, or a recipe for another family.
        CheckpointError: what is named is not there, or cannot be downloaded.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    if source is None:
        parts = _from_parts(recipe, given, allow_pickle=allow_pickle, weights=weights)
        return replace(parts, sources=sources)
    if assembly := sorted(_PARTS & given.keys()):
        raise UsageError(f"{_option(assembly[0])} is of a model from parts; --from {source} says it itself.")
    start = fetch_checkpoint(source, allow_pickle=allow_pickle, weights=weights).path
    sources = fetch_sources(sources, start)
    values = {} if recipe is None else _values(recipe.named(_family(start, sources)))
    return Asked(start=start, parts=None, values=_together(values, given), sources=sources)


_PARTS = ASSEMBLY | {"qformer_width"}


def _from_parts(
    recipe: RecipeFile | None, given: dict[str, Any], *, allow_pickle: bool, weights: bool
) -> Asked:
    any_recipe = None if recipe is None else recipe.any_recipe
    if recipe is not None and any_recipe is not None:
        if any_recipe.starts == "checkpoint":
            raise UsageError(
                f"--recipe {recipe.name} goes on from a checkpoint: give --from CHECKPOINT, the output of "
                "the stage before (docs/training.md#recipes)."
            )
        if "llm" not in given and len(recipe.families) == 1 and any_recipe.llm is not None:
            given["llm"] = any_recipe.llm
    if "llm" not in given or (recipe is None and "tower" not in given):
        known = [] if recipe is None else [recipe.named(family).llm for family in recipe.families]
        hint = f", as --llm {' or '.join(filter(None, known))}" if any(known) else ""
        raise UsageError(f"{HINT[:-1]}{hint}.")
    fetch = partial(_fetched, allow_pickle=allow_pickle, weights=weights)
    llm = fetch("llm", given["llm"])
    family = str(read_json_object(llm / "config.json").get("model_type"))
    values = {} if recipe is None else _values(recipe.named(family))
    if any((llm / name).exists() for name in TOKENIZER_FILES):
        values.pop("tokenizer", None)  # the recipe's is for who has none
    values = _together(values, given)
    if values.get("tower") is None:
        raise UsageError(
            f"--recipe {recipe.name if recipe else ''} names no tower for {family}: give --tower."
        )
    named: dict[str, Any] = {
        key: fetch(key, values[key])
        for key in ("tower", "second_tower", "tokenizer")
        if values.get(key) is not None
    }
    renamed = {
        "num_resampler_layers": "num_layers",
        "connector_factor": "factor",
        "token_budgets": "budgets",
        "model_max_length": "max_length",
    }
    known_fields = {field.name for field in fields(Parts)}
    rest = {renamed.get(key, key): value for key, value in values.items()}
    rest = {key: value for key, value in rest.items() if key in known_fields and key not in (*named, "llm")}
    parts = Parts(**{"connector": "mlp2x_gelu", **rest}, **named, llm=llm, allow_pickle=allow_pickle)
    return Asked(start=None, parts=parts, values=values)


def _fetched(key: str, name: Any, *, allow_pickle: bool, weights: bool) -> Path:
    if not Path(str(name)).exists():
        note(f"{_option(key)}: {name}, of the hub")
    return fetch_part(str(name), _option(key), allow_pickle=allow_pickle, weights=weights)


def check_packages(options: FinetuneOptions) -> None:
    """Refuse to begin where a package is missing that is asked for.

    Raises:
        MissingExtraError: bitsandbytes or torchao, by an extra of ours.
        UsageError: one that a user installs by its name.
    """
    training = options.training
    wanted: list[tuple[str, str]] = [("--report-to", package) for package in training.report_to]
    wanted += [("--deepspeed", "deepspeed")] * (training.deepspeed is not None)
    if training.attn_implementation == "flash_attention_2":
        wanted.append(("--attention flash_attention_2", "flash_attn"))
    for option, package in wanted:
        if find_spec(package) is None:
            name = package.replace("_", "-")
            raise UsageError(f"{option}: the package {name} is missing here. pip install {name}")
    if options.has_qlora and find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "qlora keeps weights in 4 bits with the package bitsandbytes, which is missing here: "
            f"{install_line('qlora')}. Or train by --tune llm=lora."
        )
    if training.quantize_aware and find_spec("torchao") is None:
        raise MissingExtraError(
            f"--quantize-aware needs the package torchao, which is missing here: {install_line('qat')}."
        )


def _option(key: str) -> str:
    return _OPTION.get(key, f"--{key.replace('_', '-')}")


# What is of a model from parts: the option's name with _ for -, and the key of a recipe.
ASSEMBLED = {_option(key)[2:].replace("-", "_"): key for key in sorted(_PARTS)}


def _family(start: Path, sources: Path | None) -> str:
    return Checkpoint(start, sources=sources).config.language.architecture


def _values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, in the words of the options."""
    values = recipe.given
    values["tune"] = {
        part: Tuning(**tuning.model_dump()) for part, tuning in recipe.tune.items() if tuning.how != "frozen"
    }
    if "token_budgets" in values:
        values["token_budgets"] = tuple(sorted(values["token_budgets"], reverse=True))
    lora = values.pop("lora", None)
    return {**values, **(lora.model_dump() if lora is not None else {})}


def _together(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A flag for the batches gathered puts away the recipe's conversations of a step."""
    if _GATHERED in given and _WHOLE in given:
        raise UsageError("--global-batch-size and --gradient-accumulation say the same. Give one of them.")
    below = {key: value for key, value in values.items() if key != _WHOLE or _GATHERED not in given}
    return {**below, **given}


def _gathered(values: Mapping[str, Any]) -> dict[str, int]:
    """How many batches of each process make a step of that many conversations."""
    whole = values.get(_WHOLE)
    if whole is None:
        return {}
    batch = values.get(_BATCH, TrainingOptions.per_device_train_batch_size)
    processes = values.get("processes") or world_size()
    at_once = batch * processes
    if whole % at_once and whole < at_once and whole % processes == 0:
        return {_BATCH: whole // processes, _GATHERED: 1}
    if whole % at_once:
        near = max(whole // at_once, 1) * at_once
        raise UsageError(
            f"a step is to be over {whole} conversations, which {processes} process(es) of {batch} do "
            f"not make: give another --batch-size, or --global-batch-size {near}."
        )
    return {_GATHERED: whole // at_once}
