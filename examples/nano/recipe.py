"""What is trained, in which order, and how: data, not code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path

Part = Literal["vision_tower", "connector", "language_model"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of the optimiser over conversations.

    It names the parts it trains, as upstream's tune types do; a part without a learning rate is frozen
    (docs/sources/tinyllava.md#what-each-stage-trains).
    """

    name: str
    template: str  # "pretrain", or the model's own
    epochs: int
    batch_size: int
    learning_rates: Mapping[Part, float] = field(
        default_factory=lambda: {"connector": 1e-3, "language_model": 1e-3}
    )
    muon_rate: float = 0.02  # of the matrices inside of layers
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    kin_share: float = 0.7  # of the pictures: some of another thing of the same kind is blended in


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Teach a fresh vision tower what EfficientNet-Lite0 sees, before any text.

    The teacher looks once at `num_views` augmented and mixed pictures; the tower then meets each of them
    `steps * batch_size / num_views` times.
    """

    num_views: int = 32_768
    unlabelled_share: float = 0.6  # of the views: of pictures nobody asks about, where some are given
    mixed_share: float = 0.25  # of the views: half of these are two pictures in one
    blended_share: float = 0.5  # of a batch: two views in one, and what the teacher said of them
    redrawn_share: float = 0.4  # of a batch: in another style than the one that the teacher saw
    steps: int = 7000
    batch_size: int = 64
    learning_rate: float = 2e-3
    muon_rate: float = 0.03  # of the matrices inside of layers
    weight_decay: float = 0.05
    teacher_image_size: int = 256  # the teacher sees the tower's pictures enlarged
    teacher_dimensions: int = 128  # of its features, pooled and at every patch, that are kept


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes a model, but for the data and the seed."""

    name: str
    config: Mapping[str, Any]  # config.json of the model
    distillation: Distillation
    stages: tuple[Stage, ...]
    precision: Literal["auto", "fp32"] = "auto"  # auto: bf16 where the CPU computes in it


def nano() -> Recipe:
    """The embedded default model, its sizes those of the shipped one.

    SigLIP tower at 96 px, mlp2x_gelu, Llama with widths of 256.
    """
    return Recipe(
        name="nano",
        config=read_json_object(checkpoint_path(NANO) / "config.json"),
        distillation=Distillation(),
        stages=(
            Stage(name="pretrain", template="pretrain", epochs=3, batch_size=32),
            Stage(name="finetune", template="llama", epochs=9, batch_size=16, weight_decay=0.2),
        ),
    )
