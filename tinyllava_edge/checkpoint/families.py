"""Facts of each family of parts, one entry a family, read by everything that depends on it.

A checkpoint's `text_config` and `vision_config` are *diffs*: a key that equals the default of its own
transformers 4.40 config class (4.51 for Qwen3, its first) may be missing, so those defaults stand here
(docs/sources/tinyllava.md#sub-configs-are-differences).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SLIDING = "sliding_attention"  # in `layer_types`: attention within a window


@dataclass(frozen=True, kw_only=True)
class Part:
    """What reading a part's config needs.

    Attributes:
        defaults: of its config class; a key that is neither here nor listed below is refused.
        only: values of which we, or llama.cpp's graph, compute one only; another one is refused.
        rope_kinds: of stretched RoPE that are computed; others are refused.
        by_layer: lists with one entry for each layer -> what they must repeat.
    """

    defaults: Mapping[str, Any]
    only: Mapping[str, Any] = field(default_factory=dict)
    rope_kinds: tuple[str, ...] = ()
    by_layer: Mapping[str, tuple[Any, ...]] = field(
        default_factory=lambda: {"layer_types": ("full_attention",)}
    )


@dataclass(frozen=True, kw_only=True)
class Tower(Part):
    """A vision tower, by `model_type`.

    Attributes:
        prefix_tokens: that stand in front of the patches: a class token.
        any_size: its position table is interpolated, so that the processor alone says the picture's size.
    """

    prefix_tokens: int
    any_size: bool = False


@dataclass(frozen=True, kw_only=True)
class Family(Part):
    """A family of language models, by `model_type`. docs/add_a_family.md.

    Attributes:
        template: of prompts, that the family was trained with upstream
            (docs/sources/tinyllava.md#prompt-templates).
        template_by_eos: another template, by the tokenizer's EOS token that tells it.
        llamacpp: llama.cpp's name of the architecture (src/llama-arch.cpp).
        norm: kind of its norms.
        norms_around_one: the checkpoint has a norm's weight less 1; llama.cpp's file has it whole (Gemma).
        float16_gelu: llama.cpp computes its GELU from a table of float16 values.
        scales_rows: every row that comes in is multiplied by sqrt(hidden), a picture's too.
        layers_differ: its layers have heads and widths of their own, so the file has lists of them.
        window_ends_context: llama.cpp computes full attention in the place of `sliding_window`, which is the
            same up to as many positions; the context ends there.
        keys: of its GGUF file beside those of every family -> type; numbers above 0.
        tensors: of its GGUF file -> sizes of the dimensions by name, outermost first; `blk.` is each layer's.
        more_tensors: groups of further ones, each whole or not there at all.
    """

    template: str
    template_by_eos: Mapping[str, str] = field(default_factory=dict)
    llamacpp: str
    norm: Literal["rms", "layer"] = "rms"
    norms_around_one: bool = False
    float16_gelu: bool = False
    scales_rows: bool = False
    layers_differ: bool = False
    window_ends_context: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str]
    more_tensors: tuple[Mapping[str, str], ...] = ()

    @property
    def epsilon_key(self) -> str:
        """llama.cpp's key for the epsilon of its norms."""
        return "attention.layer_norm_rms_epsilon" if self.norm == "rms" else "attention.layer_norm_epsilon"


_VIT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
_CLIP = {**_VIT, "intermediate_size": 3072}

TOWERS = {
    "siglip_vision_model": Tower(
        defaults={**_CLIP, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        prefix_tokens=0,
    ),
    "clip_vision_model": Tower(
        defaults={**_CLIP, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        prefix_tokens=1,
    ),
    "dinov2": Tower(  # mlp_ratio in the place of intermediate_size
        defaults={**_VIT, "mlp_ratio": 4, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
        prefix_tokens=1,
        any_size=True,
    ),
}
# Configs of public towers that a checkpoint may only name.
PUBLIC_TOWERS: dict[str, dict[str, Any]] = {
    "facebook/dinov2-large": {
        "model_type": "dinov2",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 518,
        "patch_size": 14,
    },
}

_LLAMA_LIKE: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
ROPE_DIVISORS = "rope_freqs.weight"  # of Llama 3's stretched RoPE; no tensor of a checkpoint gives it
# Sizes: vocab, hidden, inner (of the feed-forward), both (gate and up), head, pairs (half a head); queries,
# keys, fused: all heads of these together.
_HEAD = {"output.weight": "vocab hidden"}
_QKV_BIAS = {"blk.attn_q.bias": "queries", "blk.attn_k.bias": "keys", "blk.attn_v.bias": "keys"}
_QKVO_BIAS = {**_QKV_BIAS, "blk.attn_output.bias": "hidden"}
_QK_NORMS = {"blk.attn_q_norm.weight": "head", "blk.attn_k_norm.weight": "head"}
_NORM_BIAS = {"output_norm.bias": "hidden", "blk.attn_norm.bias": "hidden"}
_COMMON = {
    "token_embd.weight": "vocab hidden",
    "output_norm.weight": "hidden",
    "blk.attn_norm.weight": "hidden",
    "blk.attn_output.weight": "hidden queries",
}
_QKV = {
    "blk.attn_q.weight": "queries hidden",
    "blk.attn_k.weight": "keys hidden",
    "blk.attn_v.weight": "keys hidden",
}
_GATED = {
    "blk.ffn_norm.weight": "hidden",
    "blk.ffn_gate.weight": "inner hidden",
    "blk.ffn_up.weight": "inner hidden",
    "blk.ffn_down.weight": "hidden inner",
}
_LLAMA_TENSORS = {**_COMMON, **_QKV, **_GATED}
FAMILIES = {
    "llama": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        only={"hidden_act": "silu"},
        rope_kinds=("linear", "llama3"),
        template="llama",
        template_by_eos={  # ours; ChatML is SmolLM2's
            "<|end_of_text|>": "llama3",
            "<|eot_id|>": "llama3_instruct",
            "<|im_end|>": "qwen2_instruct",
            "<|endoftext|>": "qwen2_base",
        },
        llamacpp="llama",
        tensors=_LLAMA_TENSORS,
        more_tensors=(_HEAD, _QKVO_BIAS, {ROPE_DIVISORS: "pairs"}),
    ),
    "qwen2": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        only={"hidden_act": "silu", "use_sliding_window": False},
        rope_kinds=("linear",),
        template="qwen2_base",
        template_by_eos={"<|im_end|>": "qwen2_instruct"},
        llamacpp="qwen2",
        tensors={**_LLAMA_TENSORS, **_QKV_BIAS},
        more_tensors=(_HEAD,),
    ),
    "qwen3": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "use_sliding_window": False,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        only={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
        template="qwen2_base",  # ours: upstream has none, and the vocabulary is Qwen2's
        template_by_eos={"<|im_end|>": "qwen2_instruct"},
        llamacpp="qwen3",
        tensors={**_LLAMA_TENSORS, **_QK_NORMS},
        more_tensors=(_HEAD,),
    ),
    "gemma": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 256000,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            # Upstream ignores hidden_act and uses the tanh variant, unless hidden_activation is set.
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": None,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        only={"attention_bias": False, "tie_word_embeddings": True},
        template="gemma",
        llamacpp="gemma",
        norms_around_one=True,
        float16_gelu=True,
        scales_rows=True,
        tensors=_LLAMA_TENSORS,
    ),
    "gemma2": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",  # never read by transformers
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        only={"attention_bias": False, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
        by_layer={"layer_types": (SLIDING, "full_attention")},
        template="gemma",  # ours: upstream has none
        llamacpp="gemma2",
        norms_around_one=True,
        float16_gelu=True,
        scales_rows=True,
        keys={
            "attention.sliding_window": "uint32",
            "attn_logit_softcapping": "float32",
            "final_logit_softcapping": "float32",
        },
        tensors={
            **_LLAMA_TENSORS,
            "blk.post_attention_norm.weight": "hidden",
            "blk.post_ffw_norm.weight": "hidden",
        },
    ),
    "smollm3": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        only={
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
        },
        rope_kinds=("linear",),
        by_layer={"layer_types": ("full_attention",), "no_rope_layers": (1, 1, 1, 0)},
        template="qwen2_instruct",  # ours: upstream has none
        template_by_eos={"<|end_of_text|>": "llama3"},
        llamacpp="smollm3",
        tensors=_LLAMA_TENSORS,
        more_tensors=(_HEAD,),
    ),
    "phi3": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 32000,
        },
        only={"hidden_act": "silu"},
        template="phi",  # ours: upstream has none, and the end of a text is Phi's
        llamacpp="phi3",
        window_ends_context=True,
        tensors={
            **_COMMON,
            "blk.attn_qkv.weight": "fused hidden",
            "blk.ffn_norm.weight": "hidden",
            "blk.ffn_up.weight": "both hidden",
            "blk.ffn_down.weight": "hidden inner",
        },
        more_tensors=(_HEAD,),
    ),
    "phi": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 51200,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_key_value_heads": None,
            "hidden_act": "gelu_new",
            "max_position_embeddings": 2048,
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        only={"hidden_act": "gelu_new", "qk_layernorm": False, "tie_word_embeddings": False},
        template="phi",
        llamacpp="phi2",
        norm="layer",
        float16_gelu=True,
        tensors={
            **_COMMON,
            **_QKV,
            **_QKVO_BIAS,
            **_NORM_BIAS,
            "blk.ffn_up.weight": "inner hidden",
            "blk.ffn_up.bias": "inner",
            "blk.ffn_down.weight": "hidden inner",
            "blk.ffn_down.bias": "hidden",
            **_HEAD,
            "output.bias": "vocab",
        },
    ),
    "stablelm": Family(
        defaults={
            **_LLAMA_LIKE,
            "vocab_size": 50304,
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "use_qkv_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        only={
            "hidden_act": "silu",
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "tie_word_embeddings": False,
        },
        template="phi",
        llamacpp="stablelm",
        norm="layer",
        tensors={**_LLAMA_TENSORS, **_NORM_BIAS, "blk.ffn_norm.bias": "hidden", **_HEAD},
        more_tensors=(_QKV_BIAS,),
    ),
    "openelm": Family(
        defaults={
            "vocab_size": 32000,
            "max_context_length": 2048,
            "num_transformer_layers": 12,
            "model_dim": 2048,
            "head_dim": 128,
            "num_query_heads": [],
            "num_kv_heads": [],
            "ffn_multipliers": [],
            "ffn_dim_divisor": 256,
            "ffn_with_glu": True,
            "activation_fn_name": "swish",
            "normalization_layer_name": "rms_norm",
            "normalize_qk_projections": True,
            "share_input_output_layers": True,
            "tie_word_embeddings": True,
            "rope_freq_constant": 10000,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        only={
            "ffn_with_glu": True,
            "activation_fn_name": "swish",
            "normalization_layer_name": "rms_norm",
            "normalize_qk_projections": True,
            "share_input_output_layers": True,
        },
        template="llama",
        llamacpp="openelm",
        layers_differ=True,
        tensors={**_COMMON, **_GATED, **_QK_NORMS, "blk.attn_qkv.weight": "fused hidden"},
    ),
}

# Activations of a tower's feed-forward, by transformers' names.
VISION_ACTIVATIONS = (
    *("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu"),
    *("relu", "silu", "swish"),
)
# Keys that would change what is computed, and the reason that the refusal gives.
REFUSED_KEYS = {
    "quantization_config": "weights quantized already are not supported: give the original checkpoint",
    "use_swiglu_ffn": "DINOv2's SwiGLU feed-forward (its giant size) is not supported",
    "num_register_tokens": "register tokens are not supported",
    "layer_types": "llama.cpp has no such order of full attention and sliding windows for this family",
    "no_rope_layers": "llama.cpp leaves RoPE out of every fourth layer of SmolLM3, and of no other",
    "num_channels": "pictures have three channels",
    "qkv_bias": "DINOv2 without biases on q, k and v is not supported",
}
# Keys that do not change what the model computes.
BOOKKEEPING_KEYS = frozenset(
    (
        *("_name_or_path", "architectures", "auto_map", "cache_dir", "dtype", "model_name_or_path"),
        *("model_name_or_path2", "model_type", "torch_dtype", "transformers_version"),
        *("_attn_implementation", "attention_dropout", "initializer_factor", "initializer_range"),
        *("pad_token_id", "pretraining_tp", "projection_dim", "unk_token_id"),
        *("use_cache", "vision_use_head", "cache_implementation"),
        # what a repository, or a trainer of it, says of itself, and the attention that was chosen
        *("_attn_implementation_autoset", "_attn_implementation_internal", "is_llama_config"),
        *("transformers.js_config", "unsloth_fixed", "unsloth_version", "max_sequence_length"),
        *("sliding_window_size",),  # Gemma-2 9B, which reads `sliding_window`
        # drop-out, and windows that `use_sliding_window: false` switches off
        *("embd_pdrop", "resid_pdrop", "hidden_dropout", "sliding_window", "max_window_layers"),
        # DINOv2: start values, drop-out, and what only its backbone class uses
        *("apply_layernorm", "attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob"),
        *("layerscale_value", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),
        # OpenELM: what the lists of heads were made from, and a table length
        *("qkv_multipliers", "num_gqa_groups", "rope_max_length"),
        # transformers' PretrainedConfig, written out in full by some versions: sampling, labels, outputs
        *("chunk_size_feed_forward", "id2label", "label2id", "length_penalty", "max_length", "num_beams"),
        *("num_beam_groups", "num_return_sequences", "repetition_penalty", "return_dict", "temperature"),
        *("top_k", "top_p", "typical_p", "tokenizer_class", "use_bfloat16", "tie_encoder_decoder"),
        *("do_sample", "early_stopping", "max_new_tokens", "min_length", "no_repeat_ngram_size"),
        *("diversity_penalty", "encoder_no_repeat_ngram_size", "renormalize_logits"),
    )
)
# Keys that are harmless at these values only.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "num_channels": (3,),
    "qkv_bias": (True,),
    "use_mask_token": (True,),  # of DINOv2: only its pre-training uses the token
    "rotary_scaling_factor": (1.0,),  # StableLM, before it came to transformers
}
