"""Gemma-2: Gemma normed behind attention and feed-forward too, soft caps and a window in half its layers.

Names and keys: llama.cpp, src/models/gemma2.cpp (LLM_ARCH_GEMMA2). Which layers have the window, and by what
the queries are scaled, are no keys of the file (docs/sources/language_models.md#gemma-2).
"""

from functools import partial

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.errors import UnsupportedModelError

from .base import GgufArchitecture
from .decoder import standard_metadata, standard_tensors

_LAYERS_OF_27B = 46  # by which llama.cpp tells the one size with another scale


def _metadata(config: LanguageConfig) -> dict[str, int | float | str]:
    is_27b = config.num_hidden_layers == _LAYERS_OF_27B
    scaled_by = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    if config.values["query_pre_attn_scalar"] != scaled_by:
        raise UnsupportedModelError(
            f"text_config.query_pre_attn_scalar is {config.values['query_pre_attn_scalar']}; llama.cpp's "
            f"gemma2 graph computes only {scaled_by} with these sizes."
        )
    return {
        **standard_metadata(config),
        "attention.sliding_window": config.values["sliding_window"],
        "attn_logit_softcapping": config.values["attn_logit_softcapping"],
        "final_logit_softcapping": config.values["final_logit_softcapping"],
    }


ARCHITECTURE = GgufArchitecture(metadata=_metadata, tensors=partial(standard_tensors, post_norms=True))
