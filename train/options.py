"""What `train` can be asked for on the user's own data; checked before torch is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tinyllava_edge.errors import UsageError
from tinyllava_edge.prompt import template_named

Part = Literal["vision_tower", "connector", "language_model"]
RecipeName = Literal["full", "lora"]
Precision = Literal["auto", "fp32", "bf16"]
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
class Parts:
    """A tower and a language model that are not one checkpoint yet."""

    tower: Path
    connector: str
    llm: Path


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """One run on the user's own data.

    Attributes:
        source: checkpoint to start from.
        parts: what to assemble `source` from; it is removed again at the end.
        recipe: `lora` trains low-rank updates of the language model, `full` the weights themselves; the
            other parts of `tune` are trained in full either way, as upstream does.
        tune: which parts are trained.
        template: prompt template, in the place of the checkpoint's; `pretrain` for captions.
        learning_rate: None is upstream's (docs/sources/tinyllava.md#learning-rates).
        save_every: steps between snapshots; 0 takes none.

    Raises:
        UsageError: values that are out of range or do not fit together.
    """

    data: Path
    images: Path
    source: Path
    parts: Parts | None = None
    recipe: RecipeName = "full"
    tune: tuple[Part, ...] = ("connector", "language_model")
    template: str | None = None
    epochs: int = 1
    batch_size: int = 8
    learning_rate: float | None = None
    lora: LoraOptions = LoraOptions()
    seed: int = 0
    precision: Precision = "auto"
    save_every: int = 100
    save_adapter: bool = False
    sources: Path | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--recipe", self.recipe, get_args(RecipeName)),
            ("--precision", self.precision, get_args(Precision)),
        ):
            if value not in known:
                raise UsageError(f"{option} {value!r} is not known. Known: {', '.join(known)}.")
        numbers = {
            "--epochs": self.epochs,
            "--batch-size": self.batch_size,
            "--lora-rank": self.lora.rank,
            "--lora-alpha": self.lora.alpha,
            "--save-every": self.save_every + 1,
        }
        for option, number in numbers.items():
            if number < 1:
                raise UsageError(f"{option} is too small.")
        if not 0 <= self.lora.dropout < 1:
            raise UsageError(f"--lora-dropout is {self.lora.dropout}, expected 0 to below 1.")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise UsageError(f"--learning-rate is {self.learning_rate}, expected above 0 and below 1.")
        if self.recipe == "lora" and "language_model" not in self.tune:
            raise UsageError("--recipe lora updates the language model: --tune must name llm.")
        if self.save_adapter and self.recipe != "lora":
            raise UsageError("--save-adapter needs --recipe lora.")
        if self.template is not None:
            template_named(self.template)

    @property
    def paths_read(self) -> tuple[Path | None, ...]:
        """What a run reads, but for the folder of pictures, which is the data file's own unless named."""
        start = (self.source,) if self.parts is None else (self.parts.tower, self.parts.llm)
        return (self.data, self.sources, *start)

    @property
    def chat_template(self) -> str | None:
        """Template of the finished model; captions have none, so the checkpoint's stays."""
        return None if self.template == PRETRAIN else self.template

    @property
    def rate(self) -> float:
        """The learning rate, or upstream's for this recipe."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.recipe == "lora":
            return 2e-4
        return 1e-3 if self.tune == ("connector",) else 2e-5


def parse_tune(text: str) -> tuple[Part, ...]:
    """Parts by name, joined with `+`; `all` is every one.

    Raises:
        UsageError: a name is not known; the message lists those that are.
    """
    names = list(PARTS) if text == "all" else text.split("+")
    for name in names:
        if name not in PARTS:
            raise UsageError(f"--tune {name!r} is not known. Known: {', '.join(PARTS)}, joined by +; all.")
    return tuple(part for name, part in PARTS.items() if name in names)
