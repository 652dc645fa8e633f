"""One frozen dataclass for each part that a config.json describes, and the framework's constants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tinyllava_edge.errors import CheckpointError

from .families import FAMILIES, TOWERS, Family

IMAGE_TOKEN_ID = -200  # placeholder of a picture in token ids, never a vocabulary entry
IGNORE_LABEL = -100  # label of a position that does not count for the loss
IMAGE_MARKER = "<image>"
SIDECAR_FILE = "tinyllava_edge.json"  # what upstream never stores: template, recipe, data hash
POOL_FACTOR = 2  # of GRID_CONNECTORS, where nobody says it
# Keys of config.json that are ours: what upstream only names, where it is no public one.
SECOND_TOWER_KEY, QFORMER_KEY = "vision_config2", "qformer_config"
BUDGETS_KEY = "token_budgets"
ASSEMBLED = "assembled"  # recipe of what `train` starts from where it is given in parts

QUERY_CONNECTORS = ("resampler", "qformer")  # their learned queries are the rows, whatever comes in
GRID_CONNECTORS = ("avg_pool", "pixel_shuffle")  # make squares of neighbouring patches one row


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Vision tower, from `vision_config` and the top-level `vision_feature_*` keys."""

    architecture: str
    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    feature_layer: int = -2
    select_strategy: str = "patch"
    name_or_path: str = ""
    final_norm: bool = False  # the tower's last norm is computed on the selected layer
    has_head: bool = True  # SigLIP's pooling head; upstream's files have it, and nothing uses it

    @property
    def drop_first(self) -> bool:
        """Whether token 0 is dropped, class token or not (docs/sources/tinyllava.md#vision-towers)."""
        return self.select_strategy == "patch"

    @property
    def num_tokens(self) -> int:
        """Tokens of one picture of `image_size` that reach the connector."""
        return self.num_tokens_at(self.image_size)

    def num_tokens_at(self, image_size: int) -> int:
        """Tokens of one picture of another size, which DINOv2 takes; a rest at the edges is not used."""
        patches = (image_size // self.patch_size) ** 2
        return TOWERS[self.architecture].prefix_tokens + patches - int(self.drop_first)

    def side_at(self, image_size: int) -> int:
        """Patches along one side of a picture of `image_size`."""
        return image_size // self.patch_size

    @property
    def num_used_layers(self) -> int:
        """Encoder layers that the feature layer needs; `hidden_states[n]` is the output of n layers."""
        if self.feature_layer >= 0:
            return self.feature_layer
        return self.num_hidden_layers + 1 + self.feature_layer


@dataclass(frozen=True, kw_only=True)
class BertSizes:
    """What a Q-Former takes from bert-base-uncased's config.json, which no checkpoint contains."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """Connector; the sizes beside its type matter for those in QUERY_CONNECTORS and GRID_CONNECTORS only.

    Attributes:
        factor: side of the squares of patches that `avg_pool` and `pixel_shuffle` make one row of.
        budgets: numbers of rows that `avg_pool` was trained to give, most first, in the place of a factor;
            the first is what it gives where nobody asks for another.
    """

    type: str
    factor: int = 1
    budgets: tuple[int, ...] = ()
    num_queries: int = 128
    num_layers: int = 3
    bert: BertSizes = BertSizes()


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Language model, from `text_config` with the family's defaults filled in.

    Attributes:
        intermediate_size: width of the feed-forward; the widest layer's where layers differ (OpenELM), as are
            `num_attention_heads` and `num_key_value_heads`.
        rotary_dim: how many values of a head RoPE turns.
        values: every resolved key of the family, for its own module and converter.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # each of them ends an answer; Llama 3's instruct models have three
    name_or_path: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def family(self) -> Family:
        """The facts of its family."""
        return FAMILIES[self.architecture]

    @property
    def embedding_scale(self) -> float:
        """What every row that comes in, text or picture, is multiplied by."""
        return math.sqrt(self.hidden_size) if self.family.scales_rows else 1.0

    @property
    def rope_scaling(self) -> Mapping[str, Any] | None:
        """How RoPE is stretched, as `rope.read_rope_scaling` gives it."""
        return self.values.get("rope_scaling")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole checkpoint: its parts and how prompt and picture are prepared."""

    vision: VisionConfig
    second_vision: VisionConfig | None  # the DINOv2 half of a mixture of features (MoF)
    connector: ConnectorConfig
    language: LanguageConfig
    image_aspect_ratio: str  # "square" or "pad"
    tokenizer_max_length: int
    template: str
    template_reason: str
    dtype: str  # of the stored weights as config.json says; "" where it does not
    processor: Mapping[str, Any] | None = None  # how pictures are prepared, where the layout alone says it
    extra_tokens: tuple[str, ...] = ()  # special ones that its loader puts behind the tokenizer's own

    @property
    def architectures(self) -> dict[str, str]:
        """What each part is."""
        return {
            "vision_tower": self.vision.architecture,
            "connector": self.connector.type,
            "language_model": self.language.architecture,
        }

    def check_grid(self, image_size: int, where: str) -> None:
        """Refuse a picture size of whose patches the connector makes no whole squares.

        Args:
            image_size: pixels along a side.
            where: what names the connector, for the message.

        Raises:
            CheckpointError: the tower gives other tokens than its patches, or the factor divides them not.
        """
        if self.connector.type not in GRID_CONNECTORS:
            return
        side, tokens = self.vision.side_at(image_size), self.vision.num_tokens_at(image_size)
        if tokens != side**2:
            fits = "patch" if TOWERS[self.vision.architecture].prefix_tokens else "cls_patch"
            raise CheckpointError(
                f"{where}: connector_type {self.connector.type!r} joins squares of patches, but of "
                f"{side} x {side} patches the tower gives {tokens} tokens. Of a {self.vision.architecture} "
                f"vision_feature_select_strategy (--feature-select) {fits} is the whole grid."
            )
        fitting = [n for n in range(1, side + 1) if side % n == 0]
        for budget in self.connector.budgets:
            if budget not in (possible := [n * n for n in reversed(fitting)]):
                raise CheckpointError(
                    f"{where}: token_budgets (--budgets): squares of {side} x {side} patches never make "
                    f"{budget} tokens, but {', '.join(map(str, possible))}."
                )
        if not self.connector.budgets and side % self.connector.factor:
            raise CheckpointError(
                f"{where}: connector_factor (--connector-factor) {self.connector.factor} does not divide the "
                f"{side} x {side} patches of {image_size} px. Factors that do: "
                f"{', '.join(map(str, fitting[1:])) or 'none above 1'}."
            )

    def at_tokens(self, tokens: int) -> "ModelConfig":
        """The same at one of its connector's budgets.

        Raises:
            CheckpointError: it has no such budget; the message has those there are.
        """
        if tokens not in self.connector.budgets:
            raise CheckpointError(
                f"the connector has no budget of {tokens} visual tokens. There are: "
                f"{', '.join(map(str, self.connector.budgets)) or 'none'}."
            )
        return replace(self, connector=replace(self.connector, budgets=(tokens,)))

    def num_picture_tokens(self, image_size: int) -> int:
        """Rows that one picture of `image_size` takes in the language model's context."""
        if self.connector.type in QUERY_CONNECTORS:
            return self.connector.num_queries
        if self.connector.budgets:
            return self.connector.budgets[0]
        towers = [tower for tower in (self.vision, self.second_vision) if tower is not None]
        return sum(tower.num_tokens_at(image_size) for tower in towers) // self.connector.factor**2
