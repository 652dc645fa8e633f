"""What `train` can be asked for on the user's own data; checked before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from tinyllava_edge.errors import UsageError
from tinyllava_edge.prompt import template_named

from .mix import DataFile
from .parts import Parts, check_budgets
from .training_options import GRID_PARTS, How, Part, TrainingOptions, Tuning, check_fraction

PARTS: dict[str, Part] = {
    "connector": "connector",
    "llm": "language_model",
    "vision_tower": "vision_tower",
}
PRETRAIN = "pretrain"  # stage 1: the picture and its caption


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Size of the low-rank update; upstream's values."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """One run on the user's own data.

    Attributes:
        data: LLaVA JSON; its pictures are in `images`.
        weight: of it among several, see `DataFile`.
        more: the other files of data.
        source: checkpoint to start from.
        parts: what to assemble `source` from; it is removed again at the end.
        budgets: numbers of visual tokens that the connector of `source` is to learn, where it is not given in
            parts.
        tune: how each part is trained that is not frozen.
        recipe_name: of --recipe.
        template: prompt template, in the place of the checkpoint's; `pretrain` for captions.
        training: batches, rates, arithmetic.
        keep_adapter: write the updates of the language model alone, not merged into the weights.
        adapter: directory of low-rank updates to go on from; their sizes are `lora`.
        eval_data: validation set, in the form of `data`; its pictures are in `eval_images`.

    Raises:
        UsageError: values that are out of range or do not fit together.
    """

    data: Path
    images: Path
    source: Path
    weight: float = 1.0
    more: tuple[DataFile, ...] = ()
    parts: Parts | None = None
    budgets: tuple[int, ...] = ()
    tune: Mapping[Part, Tuning] = field(
        default_factory=lambda: {"connector": Tuning(), "language_model": Tuning()}
    )
    template: str | None = None
    recipe_name: str = ""
    lora: LoraOptions = LoraOptions()
    training: TrainingOptions = field(default_factory=TrainingOptions)
    eval_data: Path | None = None
    eval_images: Path | None = None
    save_adapter: bool = False
    keep_adapter: bool = False
    adapter: Path | None = None
    sources: Path | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        for option, number in (("--lora-rank", self.lora.rank), ("--lora-alpha", self.lora.alpha)):
            if number < 1:
                raise UsageError(f"{option} is too small.")
        if not 0 <= self.lora.dropout < 1:
            raise UsageError(f"--lora-dropout is {self.lora.dropout}, expected 0 to below 1.")
        for part, tuning in self.tune.items():
            self._check_part(part, tuning)
        check_budgets(self.budgets)
        if self.save_adapter and not self.has_lora:
            raise UsageError("--save-adapter needs --recipe lora, or --tune with a part=lora.")
        if self.keep_adapter and {part: t.how for part, t in self.tune.items()} != {"language_model": "lora"}:
            raise UsageError(
                "--keep-adapter writes updates of the language model and nothing else: --tune llm=lora. "
                "Beside other trained parts, --save-adapter keeps them in adapter/."
            )
        if self.adapter is not None and not self.has_lora:
            raise UsageError("--adapter needs --recipe lora, or --tune with a part=lora.")
        self._check_grids()
        if self.training.early_stopping_patience and self.eval_data is None:
            raise UsageError("--patience needs --eval-data, whose loss it looks at.")
        if self.template is not None:
            template_named(self.template)

    def _check_part(self, part: str, tuning: Tuning) -> None:
        known = {"part": (part, PARTS.values()), "way to tune": (tuning.how, get_args(How))}
        for what, (value, names) in known.items():
            if value not in names:
                raise UsageError(f"{part}: {what} {value!r} is not known. Known: {', '.join(names)}.")
        if tuning.how == "qlora" and part != "language_model":
            raise UsageError(f"--tune: qlora is for llm; give {part} lora.")
        if tuning.from_layer is not None and (part != "vision_tower" or tuning.how != "full"):
            raise UsageError(f"{part}: only a tower that is tuned in full is tuned from a layer on.")
        if tuning.learning_rate is not None:
            check_fraction(f"{part}: learning rate", tuning.learning_rate or -1.0)
        check_fraction(f"{part}: weight decay", tuning.weight_decay or 0.0)

    def _check_grids(self) -> None:
        for grid in self.training.quantize_aware:
            for part in filter(GRID_PARTS[grid].__contains__, self.lora_parts):
                raise UsageError(
                    f"--quantize-aware {grid} is of the {part}'s own weights, and a LoRA update merged into "
                    f"them takes them off the grid. Train the {part} in full, or leave it frozen."
                )
        if self.training.quantize_aware and self.keep_adapter:
            raise UsageError(
                "--keep-adapter writes no weights that --quantize-aware could be of. Leave one out."
            )

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All files of data."""
        return DataFile(path=self.data, images=self.images, weight=self.weight), *self.more

    @property
    def has_lora(self) -> bool:
        """Whether a part has low-rank updates."""
        return bool(self.lora_parts)

    @property
    def has_qlora(self) -> bool:
        """Whether one of them is beside weights in 4 bits."""
        return any(tuning.how == "qlora" for tuning in self.tune.values())

    @property
    def lora_parts(self) -> list[Part]:
        """Parts with low-rank updates."""
        return [part for part, tuning in self.tune.items() if tuning.how != "full"]

    @property
    def recipe(self) -> str:
        """What the sidecar calls it."""
        return self.recipe_name or ("lora" if self.has_lora else "full")

    @property
    def paths_read(self) -> tuple[Path | None, ...]:
        """What a run reads, but for folders of pictures, which are the data files' own unless named."""
        start = (self.source,) if self.parts is None else self.parts.directories
        data = [file.path for file in self.files]
        return (*data, self.adapter, self.eval_data, self.sources, self.training.deepspeed, *start)

    @property
    def chat_template(self) -> str | None:
        """Template of the finished model; captions have none, so the checkpoint's stays."""
        return None if self.template == PRETRAIN else self.template

    @property
    def rate(self) -> float:
        """The learning rate of parts without one of their own: upstream's for what is tuned if not given."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        if self.has_lora:
            return 2e-4
        return 1e-3 if list(self.tune) == ["connector"] else 2e-5

    def rate_of(self, part: Part) -> float:
        """The learning rate of a part."""
        own = self.tune[part].learning_rate
        return self.rate if own is None else own

    def decay_of(self, part: Part) -> float:
        """The weight decay of a part's matrices; biases and norms have none."""
        own = self.tune[part].weight_decay
        return self.training.weight_decay if own is None else own


def parse_tune(text: str) -> dict[Part, Tuning]:
    """Parts by name, joined with `+`, each with how it is trained: `llm=lora+connector`; `all` is every one.

    Raises:
        UsageError: a name is not known; the message lists those that are.
    """
    tune: dict[Part, Tuning] = {}
    for word in PARTS if text == "all" else text.split("+"):
        name, _, how = word.partition("=")
        if name not in PARTS:
            raise UsageError(
                f"--tune {name!r} is not known. Known: {', '.join(PARTS)}, joined by +, with =lora or "
                "=qlora; all."
            )
        if (how or "full") not in get_args(How):
            raise UsageError(f"--tune {word}: {how!r} is not known. Known: {', '.join(get_args(How))}.")
        tune[PARTS[name]] = Tuning(how=cast(How, how or "full"))
    return {part: tune[part] for part in PARTS.values() if part in tune}


def with_changes(
    tune: Mapping[Part, Tuning], *, rates: Mapping[Part, float | None], from_layer: int | None = None
) -> dict[Part, Tuning]:
    """The same with learning rates of their own for some parts, and the tower from a layer on.

    Raises:
        UsageError: a part that is changed is not tuned.
    """
    changed: dict[Part, Any] = dict(tune)
    changes: list[tuple[Part, str, Any]] = [(part, "learning_rate", rate) for part, rate in rates.items()]
    for part, name, value in (*changes, ("vision_tower", "from_layer", from_layer)):
        if value is not None and part not in changed:
            raise UsageError(f"a {name.replace('_', ' ')} for {part}, which --tune does not name.")
        if value is not None:
            changed[part] = replace(changed[part], **{name: value})
    return changed
