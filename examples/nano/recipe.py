"""What is trained, in which order, and how: data, not code.

A stage names the parts it trains, as upstream's tune types do; a part without a learning rate is frozen
(docs/sources/tinyllava.md#what-each-stage-trains).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["vision_tower", "connector", "language_model"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of the optimiser over conversations."""

    name: str
    template: str  # "pretrain", or the model's own
    learning_rates: Mapping[Part, float]
    muon_rate: float  # of the matrices inside of layers
    epochs: int
    batch_size: int
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    kin_share: float = 0.0  # of nano's pictures: some of another thing of the same kind is blended in


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Teach a fresh vision tower what EfficientNet-Lite0 sees, before any text.

    The teacher looks once at `num_views` augmented and mixed pictures; the tower then meets each of them
    `steps * batch_size / num_views` times.
    """

    num_views: int
    unlabelled_share: float  # of the views: of pictures that nobody asks about, where some are given
    mixed_share: float  # of the views: half of these are two pictures in one
    blended_share: float  # of a batch: two views in one, and what the teacher said of them
    redrawn_share: float  # of a batch: in another style than the one that the teacher saw
    steps: int
    batch_size: int
    learning_rate: float
    muon_rate: float  # of the matrices inside of layers
    weight_decay: float
    teacher_image_size: int  # the teacher sees the tower's pictures enlarged
    teacher_dimensions: int  # of its features, pooled and at every patch, that are kept


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes a model, but for the data and the seed."""

    name: str
    config: Mapping[str, Any]  # config.json of the model
    vocab_size: int
    distillation: Distillation
    stages: tuple[Stage, ...]
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the CPU computes in it
    gradient_norm: float = 1.0


def nano() -> Recipe:
    """The embedded default model: SigLIP tower at 96 px, mlp2x_gelu, Llama with widths of 256."""
    return Recipe(
        name="nano",
        config=_nano_config(vocab_size=1024),
        vocab_size=1024,
        distillation=Distillation(
            num_views=32_768,
            unlabelled_share=0.6,
            mixed_share=0.25,
            blended_share=0.5,
            redrawn_share=0.4,
            steps=7000,
            batch_size=64,
            learning_rate=2e-3,
            muon_rate=0.03,
            weight_decay=0.05,
            teacher_image_size=256,
            teacher_dimensions=128,
        ),
        stages=(
            Stage(
                name="pretrain",
                template="pretrain",
                learning_rates={"connector": 1e-3, "language_model": 1e-3},
                muon_rate=0.02,
                epochs=3,
                batch_size=32,
                kin_share=0.7,
            ),
            Stage(
                name="finetune",
                template="llama",
                learning_rates={"connector": 1e-3, "language_model": 1e-3},
                muon_rate=0.02,
                epochs=9,
                batch_size=16,
                weight_decay=0.2,
                kin_share=0.7,
            ),
        ),
    )


def _nano_config(vocab_size: int) -> dict[str, Any]:
    """`config.json`, with the keys that TinyLLaVA Factory writes (docs/sources/tinyllava.md#config-file)."""
    language, vision = "tinyllava-edge/nano-tinyllama", "tinyllava-edge/nano-siglip-patch16-96"
    return {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "cache_dir": None,
        "connector_type": "mlp2x_gelu",
        "hidden_size": 256,
        "ignore_index": -100,
        "image_aspect_ratio": "square",
        "image_token_index": -200,
        "llm_model_name_or_path": language,
        "model_type": "tinyllava",
        "num_queries": 128,
        "num_resampler_layers": 3,
        "pad_token": "<unk>",
        "pad_token_id": 0,
        "resampler_hidden_size": 768,
        "text_config": {
            "_name_or_path": language,
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 256,
            "intermediate_size": 512,
            "max_position_embeddings": 1024,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "vocab_size": vocab_size,
        },
        "tokenizer_model_max_length": 1024,
        "tokenizer_name_or_path": language,
        "tokenizer_padding_side": "right",
        "tokenizer_use_fast": False,
        "torch_dtype": "float16",
        "tune_type_connector": "full",
        "tune_type_llm": "full",
        "tune_type_vision_tower": "full",
        "tune_vision_tower_from_layer": 0,
        "use_cache": True,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 192,
            "image_size": 96,
            "intermediate_size": 768,
            "layer_norm_eps": 1e-06,
            "model_name_or_path": vision,
            "model_name_or_path2": "",
            "model_type": "siglip_vision_model",
            "num_attention_heads": 3,
            "num_hidden_layers": 6,
            "patch_size": 16,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "vision_hidden_size": 192,
        "vision_model_name_or_path": vision,
        "vision_model_name_or_path2": "",
        "vocab_size": vocab_size,
    }
