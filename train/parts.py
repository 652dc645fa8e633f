"""A tower, a language model and what joins them, that are no checkpoint yet: what `assemble` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.checkpoint.config import GRID_CONNECTORS, BertSizes
from tinyllava_edge.checkpoint.names import fetch_checkpoint
from tinyllava_edge.checkpoint.source_names import hub_name
from tinyllava_edge.errors import UsageError

MAX_LENGTH = 2048  # of a conversation, pictures included
_HEAD = 64  # width of a head of BERT
_MOF, _QFORMER, _RESAMPLER, _AVG_POOL = "mof_mlp", "qformer", "resampler", "avg_pool"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Directories as transformers saves them, and what upstream's scripts and config.json call the rest.

    Attributes:
        tower: SigLIP, CLIP or DINOv2; of a mixture of features the CLIP.
        connector: its type, as `connector_type` in a config.json; its weights are random.
        llm: of a family that is known, with its tokenizer unless `tokenizer` is given.
        second_tower: DINOv2 of a mixture of features, which `mof_mlp` joins.
        tokenizer: directory of the language model's tokenizer, where that has none (OpenELM).
        feature_layer: of the tower's hidden states, 0 is the embeddings'.
        feature_select: `patch` drops token 0, class token or not; `cls_patch` keeps all.
        image_aspect_ratio: `square`, or `pad` to a square first.
        num_queries: rows of a picture behind `resampler` and `qformer`.
        num_layers: of `resampler` (3 if not given) and `qformer` (12).
        factor: side of the squares of patches that `avg_pool` and `pixel_shuffle` make one row of; 2.
        budgets: numbers of visual tokens that `avg_pool` learns at once, in the place of a factor.
        qformer_width: a multiple of 64, the width of its heads; its feed-forward is 4 times as wide.
        max_length: positions that are left of a conversation; None is 2048, or the language model's if fewer.
        allow_pickle: read `.bin` weights.

    Raises:
        UsageError: an option is of another connector, or out of range.
    """

    tower: Path
    connector: str
    llm: Path
    second_tower: Path | None = None
    tokenizer: Path | None = None
    feature_layer: int = -2
    feature_select: str = "patch"
    image_aspect_ratio: str = "square"
    num_queries: int | None = None
    num_layers: int | None = None
    factor: int | None = None
    budgets: tuple[int, ...] = ()
    qformer_width: int | None = None
    max_length: int | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--feature-select", self.feature_select, ("patch", "cls_patch")),
            ("--image-aspect-ratio", self.image_aspect_ratio, ("square", "pad")),
        ):
            if value not in known:
                raise UsageError(f"{option} {value!r} is not known. Known: {', '.join(known)}.")
        for option, number, connectors in (
            ("--num-queries", self.num_queries, (_RESAMPLER, _QFORMER)),
            ("--connector-layers", self.num_layers, (_RESAMPLER, _QFORMER)),
            ("--connector-factor", self.factor, GRID_CONNECTORS),
            ("--qformer-width", self.qformer_width, (_QFORMER,)),
        ):
            if number is not None and self.connector not in connectors:
                raise UsageError(
                    f"{option} is of --connector {' or '.join(connectors)}, not {self.connector}."
                )
            if number is not None and number < 1:
                raise UsageError(f"{option} is {number}, expected 1 or more.")
        check_budgets(self.budgets)
        if self.budgets and (self.connector != _AVG_POOL or self.factor is not None):
            raise UsageError("--budgets is of --connector avg_pool, in the place of --connector-factor.")
        if (self.qformer_width or _HEAD) % _HEAD:
            raise UsageError(f"--qformer-width is {self.qformer_width}, expected a multiple of {_HEAD}.")
        if (self.second_tower is None) == (self.connector == _MOF):
            raise UsageError(
                f"--connector {self.connector} with {1 if self.second_tower is None else 2} tower(s): "
                "mof_mlp joins --tower and --second-tower, every other connector takes --tower alone."
            )

    @property
    def directories(self) -> tuple[Path, ...]:
        """All that is read."""
        given = (self.tower, self.second_tower, self.llm, self.tokenizer)
        return tuple(path for path in given if path is not None)

    @property
    def words(self) -> list[object]:
        """The options that say this again; for a line to run."""
        given = {
            "--tower": self.tower,
            "--second-tower": self.second_tower,
            "--llm": self.llm,
            "--tokenizer": self.tokenizer,
            "--connector": self.connector,
            "--num-queries": self.num_queries,
            "--connector-layers": self.num_layers,
            "--connector-factor": self.factor,
            "--budgets": ",".join(map(str, self.budgets)) or None,
            "--qformer-width": self.qformer_width,
            "--feature-layer": None if self.feature_layer == -2 else self.feature_layer,
            "--feature-select": None if self.feature_select == "patch" else self.feature_select,
            "--image-aspect-ratio": None if self.image_aspect_ratio == "square" else self.image_aspect_ratio,
        }
        return [word for pair in given.items() if pair[1] is not None for word in pair]

    @property
    def bert(self) -> BertSizes | None:
        """Sizes of a Q-Former that are not bert-base-uncased's; None where they are."""
        if self.connector != _QFORMER or (self.num_layers is None and self.qformer_width is None):
            return None
        width = self.qformer_width or BertSizes.hidden_size
        return BertSizes(
            hidden_size=width,
            num_hidden_layers=self.num_layers or BertSizes.num_hidden_layers,
            num_attention_heads=width // _HEAD,
            intermediate_size=4 * width,
        )

    @property
    def name(self) -> str:
        """What a run's sidecar calls it."""
        towers = [self.tower] if self.second_tower is None else [self.tower, self.second_tower]
        return " + ".join([*map(part_name, towers), self.connector, part_name(self.llm)])


def check_budgets(budgets: Sequence[int]) -> None:
    """Refuse budgets of visual tokens that no connector has: below 1, or one twice."""
    if any(budget < 1 for budget in budgets) or len(set(budgets)) != len(budgets):
        said = ",".join(map(str, budgets))
        raise UsageError(f"--budgets {said}: expected different numbers of visual tokens, each 1 or more.")


def parse_budgets(text: str) -> tuple[int, ...]:
    """Numbers of visual tokens, joined with commas, most first.

    Raises:
        UsageError: something else is between the commas.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < 9 for word in words):
        raise UsageError(f"--budgets {text!r:.60}: expected numbers of visual tokens, as 729,81,9.")
    return tuple(sorted(map(int, words), reverse=True))


def part_name(directory: Path) -> str:
    """`owner/name` of a directory in the hub's cache; else its last part."""
    name = hub_name(str(directory.resolve()))
    return directory.resolve().name if name == str(directory.resolve()) else name


def fetch_part(name_or_path: str, option: str, *, allow_pickle: bool = False, weights: bool = True) -> Path:
    """The directory of a part: a path, or `owner/name[@revision]` that is downloaded, its configs at least.

    Raises:
        CheckpointError: it cannot be downloaded.
        UsageError: no such directory, and no name of the hub.
    """
    path = fetch_checkpoint(name_or_path, allow_pickle=allow_pickle, weights=weights).path
    if not path.is_dir():
        raise UsageError(
            f"{option} {name_or_path}: no such directory. Give what transformers saved, or owner/name "
            "of the hub."
        )
    return path
