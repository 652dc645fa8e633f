"""The language model: transformers' causal LM of the family; OpenELM, which it lacks, is ours."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from tinyllava_edge.checkpoint.config import LanguageConfig

from .openelm import OpenElm

# Keys that transformers 5 moved into `rope_parameters`.
_ROPE_KEYS = ("rope_theta", "partial_rotary_factor")
_NOT_FOR_TRANSFORMERS = ("architecture", "hidden_activation")


def build_language_model(config: LanguageConfig) -> nn.Module:
    """Build a causal language model with random weights.

    It takes `inputs_embeds` [batch, positions, hidden] and returns an output with `.logits`
    [batch, positions, vocab]; `continued_logits` runs it behind a cache.
    """
    return _OWN.get(config.architecture, _from_transformers)(config)


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


def _from_transformers(config: LanguageConfig, **changed: Any) -> nn.Module:
    """The causal LM that transformers has under the family's name; `changed` keys of its config."""
    values = {key: value for key, value in config.values.items() if key not in _NOT_FOR_TRANSFORMERS}
    if int(transformers.__version__.split(".")[0]) >= 5:
        rope = {key: values.pop(key) for key in _ROPE_KEYS if key in values}
        rope |= values.pop("rope_scaling", {})
        values["rope_parameters"] = {"rope_type": "default", **rope}
    # A padding row would be zeroed in the embedding; upstream has none.
    values |= {**changed, "pad_token_id": None}
    resolved = transformers.AutoConfig.for_model(config.architecture, **values)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(resolved)  # type: ignore[no-untyped-call]
    return model


def _gemma(config: LanguageConfig) -> nn.Module:
    """Both Gemmas as transformers 4 has them: all of `inputs_embeds` is scaled inside, picture rows too.

    transformers 5 scales in the embedding instead, where picture rows do not pass. The tanh variant of GELU
    is computed whatever hidden_act says (docs/sources/tinyllava.md#gemmas-activation).
    """
    activation = config.values["hidden_activation"] or "gelu_pytorch_tanh"
    model = _from_transformers(config, hidden_act=activation, hidden_activation=activation)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale.fill_(1.0)
        embedding.scalar_embed_scale = 1.0

        def scale_rows(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] * config.embedding_scale}

        model.register_forward_pre_hook(scale_rows, with_kwargs=True)
    return model


# Families that transformers lacks, or computes in another way than upstream does.
_OWN: dict[str, Callable[[LanguageConfig], nn.Module]] = {
    "gemma": _gemma,
    "gemma2": _gemma,
    "openelm": OpenElm,
}
