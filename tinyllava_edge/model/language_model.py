"""The language model: transformers' causal LM of the family; OpenELM, which it lacks, is ours."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from tinyllava_edge.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .openelm import OpenElm

# Keys that transformers 5 moved into `rope_parameters`.
_ROPE_KEYS = ("rope_theta", "partial_rotary_factor")
_NOT_FOR_TRANSFORMERS = ("architecture", "hidden_activation")


def build_language_model(config: LanguageConfig) -> nn.Module:
    """Build a causal language model with random weights.

    It takes `inputs_embeds` [batch, positions, hidden] and returns an output with `.logits`
    [batch, positions, vocab]; `continued_logits` runs it behind a cache.

    Raises:
        UnsupportedModelError: the family is not known; the message lists those that are.
    """
    if config.architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"language model {config.architecture!r} is not supported. Supported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[config.architecture](config)


def continued_logits(
    model: nn.Module, rows: torch.Tensor, cache: transformers.DynamicCache, *, keep: int = 0
) -> torch.Tensor:
    """Logits [batch, positions, vocab] of rows [batch, positions, hidden] behind what `cache` holds.

    Those of the last `keep` positions only, where it is not 0.

    The cache grows by the rows. transformers before 5.24 called the argument `past_key_values`.
    """
    parameters = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    output = model(inputs_embeds=rows, use_cache=True, logits_to_keep=keep, **{name: cache})
    logits: torch.Tensor = output.logits
    return logits


def _from_transformers(config_name: str, model_name: str) -> Callable[[LanguageConfig], nn.Module]:
    def build(config: LanguageConfig) -> nn.Module:
        config_class = getattr(transformers, config_name)
        model: nn.Module = getattr(transformers, model_name)(config_class(**_arguments(config)))
        return model

    return build


def _gemma(config: LanguageConfig) -> nn.Module:
    """Gemma as transformers 4 has it: all of `inputs_embeds` is scaled inside, picture rows too.

    transformers 5 scales in the embedding instead, where picture rows do not pass.
    """
    model = _from_transformers("GemmaConfig", "GemmaForCausalLM")(config)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale.fill_(1.0)
        embedding.scalar_embed_scale = 1.0
        scale = config.hidden_size**0.5

        def scale_rows(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] * scale}

        model.register_forward_pre_hook(scale_rows, with_kwargs=True)
    return model


def _arguments(config: LanguageConfig) -> dict[str, Any]:
    """The family's resolved keys, in the words of the installed transformers."""
    values = {key: value for key, value in config.values.items() if key not in _NOT_FOR_TRANSFORMERS}
    if config.architecture == "gemma":
        # 4.40.1 computes the tanh variant whatever hidden_act says (spec/tinyllava.md section 3.4).
        activation = config.values["hidden_activation"] or "gelu_pytorch_tanh"
        values.update(hidden_act=activation, hidden_activation=activation)
    if int(transformers.__version__.split(".")[0]) >= 5:
        rope = {key: values.pop(key) for key in _ROPE_KEYS if key in values}
        values["rope_parameters"] = {"rope_type": "default", **rope}
    # A padding row would be zeroed in the embedding; upstream has none.
    return {**values, "pad_token_id": None}


FAMILIES: dict[str, Callable[[LanguageConfig], nn.Module]] = {
    "llama": _from_transformers("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": _from_transformers("Qwen2Config", "Qwen2ForCausalLM"),
    "gemma": _gemma,
    "phi": _from_transformers("PhiConfig", "PhiForCausalLM"),
    "stablelm": _from_transformers("StableLmConfig", "StableLmForCausalLM"),
    "openelm": OpenElm,
}
