"""nanoVLM's own config.json and names of tensors, in the words of TinyLLaVA Factory.

Read are the versions, and the settings, with which one picture is one tile. Source: docs/sources/nanovlm.md.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .values import MAX_LAYERS, MAX_SIZE

OWN = "nanovlm"  # key of the config in TinyLLaVA Factory's words
PIXEL_SHUFFLE = "pixel_shuffle"  # the connector's type
_VISION = {
    "vit_hidden_dim": "hidden_size",
    "vit_inter_dim": "intermediate_size",
    "vit_patch_size": "patch_size",
    "vit_img_size": "image_size",
    "vit_n_heads": "num_attention_heads",
    "vit_n_blocks": "num_hidden_layers",
    "vit_ln_eps": "layer_norm_eps",
}
_LANGUAGE = {
    "lm_hidden_dim": "hidden_size",
    "lm_inter_dim": "intermediate_size",
    "lm_rms_eps": "rms_norm_eps",
    "lm_re_base": "rope_theta",
    "lm_max_position_embeddings": "max_position_embeddings",
    "lm_vocab_size": "vocab_size",
    "lm_n_heads": "num_attention_heads",
    "lm_n_kv_heads": "num_key_value_heads",
    "lm_n_blocks": "num_hidden_layers",
}
_FRACTIONS = ("vit_ln_eps", "lm_rms_eps", "lm_re_base")
# What upstream's modules also have, and nobody's checkpoint: docs/sources/nanovlm.md#config
_ONLY = {"vit_cls_flag": False, "lm_attn_scaling": 1.0, "lm_use_tokens": False}
_KNOWN = {
    *(*_VISION, *_LANGUAGE, *_ONLY, "lm_tie_weights", "lm_tokenizer", "lm_model_type", "vit_model_type"),
    *("mp_pixel_shuffle_factor", "mp_image_token_length", "lm_chat_template", "vlm_extra_tokens"),
    *("max_img_size", "resize_to_max_side_len"),
    # of training, and where things were
    *("vit_dropout", "lm_dropout", "lm_max_length", "lm_eos_token_id", "lm_base_vocab_size"),
    *("extra_token_amount", "vlm_load_backbone_weights", "vlm_checkpoint_path", "vlm_snapshot_path"),
    "hf_repo_name",
}
_FAMILY = re.compile(r"smollm|llama", re.IGNORECASE)  # docs/sources/nanovlm.md#language-model
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Key of vlm_extra_tokens -> its text, and the prompt template with that text before a picture.
_BEFORE_PICTURE = {
    "global_image_token": ("<|global_image|>", "nanovlm_chat_global"),
    "r1c1": ("<row_1_col_1>", "nanovlm_chat_row"),
}


@dataclass(frozen=True, kw_only=True)
class NanoVlm:
    """What such a checkpoint says that TinyLLaVA Factory has no key for; no JSON file can hold one.

    Attributes:
        factor: of the pixel shuffle.
        template: name of the prompt template, and why it is that one.
        extra_tokens: special tokens that upstream's loader puts behind the tokenizer's own.
        processor: how pictures are prepared, in the words of a `preprocessor_config.json`.
    """

    factor: int
    template: tuple[str, str]
    extra_tokens: tuple[str, ...]
    processor: Mapping[str, Any]


def is_nanovlm(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is nanoVLM's, which has no model_type: docs/sources/nanovlm.md#files."""
    return "model_type" not in raw and "vit_hidden_dim" in raw and "lm_hidden_dim" in raw


def nanovlm_config(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A nanoVLM `config.json` as TinyLLaVA Factory would write it, and a `NanoVlm` for what that lacks.

    Raises:
        CheckpointError: a value is missing or cannot be, or two do not fit together.
        UnsupportedModelError: tiles, another language model, or a key or value that is not known.
    """
    if unknown := sorted(raw.keys() - _KNOWN):
        raise UnsupportedModelError(
            f"{path}: {unknown[0]} = {shown(raw[unknown[0]])}: no version of nanoVLM that is known here has "
            "this key, so the model might be computed wrongly. Remove the key if it has no effect."
        )
    for key, only in _ONLY.items():
        if raw.get(key, only) != only:
            raise UnsupportedModelError(
                f"{path}: {key} = {shown(raw[key])} is not supported, only {only} is."
            )
    language = str(raw.get("lm_model_type", ""))
    if not _FAMILY.search(language):
        raise UnsupportedModelError(
            f"{path}: lm_model_type {language!r} is of no known family: nanoVLM's language model is Llama's "
            "layer. Supported: names with SmolLM or Llama in them."
        )
    values = {key: _number(raw, key, path) for key in (*_VISION, *_LANGUAGE, "mp_pixel_shuffle_factor")}
    tied = raw.get("lm_tie_weights", True)
    if not isinstance(tied, bool):
        raise CheckpointError(f"{path}: lm_tie_weights = {shown(tied)} is not a possible value.")
    _template(raw, path)  # tiles are said before sizes that follow from them
    _check_fit(raw, values, path)
    side = values["vit_img_size"]
    return {
        "model_type": "tinyllava",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **{ours: values[key] for key, ours in _VISION.items()},
        },
        "text_config": {
            "model_type": "llama",
            "tie_word_embeddings": tied,
            "bos_token_id": None,
            "eos_token_id": None,
            **{ours: values[key] for key, ours in _LANGUAGE.items()},
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "cls_patch",
        "connector_type": PIXEL_SHUFFLE,
        "vision_model_name_or_path": str(raw.get("vit_model_type", "")),
        "tokenizer_name_or_path": str(raw.get("lm_tokenizer", "")),
        OWN: NanoVlm(
            factor=values["mp_pixel_shuffle_factor"],
            template=_template(raw, path),
            extra_tokens=tuple(_extra_tokens(raw, path).values()),
            processor={
                "size": {"height": side, "width": side},
                "resample": 3 if "max_img_size" in raw else 2,  # docs/sources/nanovlm.md#pixels
                "image_mean": [0.0] * 3,  # no Normalize follows ToTensor
                "image_std": [1.0] * 3,
            },
        ),
    }


def _number(raw: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in raw:
        raise CheckpointError(f"{path}: {key} is missing, which every version of nanoVLM writes.")
    value, most = raw[key], MAX_LAYERS if key.endswith("_blocks") else MAX_SIZE
    fits = type(value) is int and 1 <= value <= most
    if key in _FRACTIONS:
        fits = type(value) in (int, float) and 0 < value <= 1e12
    if not fits:
        raise CheckpointError(f"{path}: {key} = {shown(value)} is not a possible value.")
    return value


def _check_fit(raw: Mapping[str, Any], values: Mapping[str, int], path: Path) -> None:
    """Sizes that are made of each other."""
    for whole, part in (
        ("vit_hidden_dim", "vit_n_heads"),
        ("lm_hidden_dim", "lm_n_heads"),
        ("lm_n_heads", "lm_n_kv_heads"),
    ):
        if values[whole] % values[part]:
            raise CheckpointError(f"{path}: {whole} {values[whole]} is no multiple of {part} {values[part]}.")
    if values["lm_hidden_dim"] // values["lm_n_heads"] % 2:
        raise CheckpointError(
            f"{path}: lm_hidden_dim {values['lm_hidden_dim']} and lm_n_heads {values['lm_n_heads']} give "
            "heads of an odd size, of which RoPE turns pairs."
        )
    factor, grid = values["mp_pixel_shuffle_factor"], values["vit_img_size"] // values["vit_patch_size"]
    if not grid or grid % factor:
        raise CheckpointError(
            f"{path}: mp_pixel_shuffle_factor {factor} does not divide the {grid} x {grid} patches of "
            f"vit_img_size {values['vit_img_size']} and vit_patch_size {values['vit_patch_size']}."
        )
    length = raw.get("mp_image_token_length", (grid // factor) ** 2)
    if length != (grid // factor) ** 2:
        raise CheckpointError(
            f"{path}: mp_image_token_length is {shown(length)}, but vit_img_size {values['vit_img_size']}, "
            f"vit_patch_size {values['vit_patch_size']} and mp_pixel_shuffle_factor {factor} give "
            f"{(grid // factor) ** 2} tokens of a picture."
        )


def _template(raw: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Name of the prompt template, and why it is that one.

    Raises:
        CheckpointError: a token that the prompt needs has no text.
        UnsupportedModelError: tiles, or a chat template of somebody's own.
    """
    most, side = raw.get("max_img_size"), raw.get("vit_img_size")
    if most not in (None, side):
        raise UnsupportedModelError(
            f"{path}: max_img_size = {shown(most)} with vit_img_size = {side}: larger pictures are cut into "
            "tiles, which is not supported. Supported: max_img_size equal to vit_img_size, or none."
        )
    chat = raw.get("lm_chat_template")
    if chat is None and most is None:
        return "nanovlm_question", "config.json has no lm_chat_template"
    if chat != CHAT_TEMPLATE:
        raise UnsupportedModelError(
            f"{path}: lm_chat_template = {shown(chat)} is not supported, only nanoVLM's own is (ChatML)."
        )
    if most is None:
        return "nanovlm_chat", "lm_chat_template of config.json"
    tokens = _extra_tokens(raw, path)
    key = next((key for key in _BEFORE_PICTURE if key in tokens), None)
    if key is None:
        raise CheckpointError(
            f"{path}: vlm_extra_tokens has neither {' nor '.join(_BEFORE_PICTURE)}, one of which stands "
            "before each picture where there is a max_img_size."
        )
    text, name = _BEFORE_PICTURE[key]
    if tokens[key] != text:
        raise UnsupportedModelError(
            f"{path}: vlm_extra_tokens.{key} = {shown(tokens[key])} is not supported, only {text!r} is."
        )
    return name, f"lm_chat_template and vlm_extra_tokens.{key} of config.json"


def _extra_tokens(raw: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Special tokens that upstream puts behind the tokenizer's own, in their order; v0.1 has none."""
    tokens = raw.get("vlm_extra_tokens")
    if tokens is None and "lm_chat_template" not in raw:
        return {}
    if not isinstance(tokens, dict) or not all(isinstance(text, str) and text for text in tokens.values()):
        raise CheckpointError(f"{path}: vlm_extra_tokens is {shown(tokens)}, expected an object of texts.")
    if "image_token" not in tokens:
        raise CheckpointError(
            f"{path}: vlm_extra_tokens has no image_token, so that no place is a picture's. Its keys: "
            f"{', '.join(tokens) or 'none'}."
        )
    return dict(tokens)


_EMBEDDING, _HEAD = "decoder.token_embedding.weight", "decoder.head.weight"
_TOWER = "vision_tower.vision_model."
_LAYERS = "language_model.model.layers.N."
# Starts of upstream's names -> ours, N any layer (docs/sources/nanovlm.md#tensors). One that is there several
# times holds them one behind the other in its first dimension.
_NAMES = (
    ("vision_encoder.patch_embedding.conv.", f"{_TOWER}embeddings.patch_embedding."),
    ("vision_encoder.patch_embedding.position_embedding", f"{_TOWER}embeddings.position_embedding.weight"),
    ("vision_encoder.layer_norm.", f"{_TOWER}post_layernorm."),
    ("vision_encoder.blocks.N.ln1.", f"{_TOWER}encoder.layers.N.layer_norm1."),
    ("vision_encoder.blocks.N.ln2.", f"{_TOWER}encoder.layers.N.layer_norm2."),
    ("vision_encoder.blocks.N.attn.qkv_proj.", f"{_TOWER}encoder.layers.N.self_attn.q_proj."),
    ("vision_encoder.blocks.N.attn.qkv_proj.", f"{_TOWER}encoder.layers.N.self_attn.k_proj."),
    ("vision_encoder.blocks.N.attn.qkv_proj.", f"{_TOWER}encoder.layers.N.self_attn.v_proj."),
    ("vision_encoder.blocks.N.attn.out_proj.", f"{_TOWER}encoder.layers.N.self_attn.out_proj."),
    ("vision_encoder.blocks.N.mlp.", f"{_TOWER}encoder.layers.N.mlp."),
    ("MP.proj.", "connector.proj."),
    ("decoder.token_embedding.", "language_model.model.embed_tokens."),
    ("decoder.head.", "language_model.lm_head."),
    ("decoder.norm.", "language_model.model.norm."),
    ("decoder.rotary_embd.", "language_model.model.rotary_emb."),
    ("decoder.blocks.N.norm1.", f"{_LAYERS}input_layernorm."),
    ("decoder.blocks.N.norm2.", f"{_LAYERS}post_attention_layernorm."),
    ("decoder.blocks.N.attn.out_proj.", f"{_LAYERS}self_attn.o_proj."),
    ("decoder.blocks.N.attn.", f"{_LAYERS}self_attn."),
    ("decoder.blocks.N.mlp.", f"{_LAYERS}mlp."),
)
_LAYER = re.compile(r"(?<=\.blocks\.|\.layers\.)\d+(?=\.)")


def names_in_file(keys: Collection[str], tied: bool, path: Path) -> dict[str, tuple[str, ...]]:
    """Our names of what each of a file's tensors holds, one behind the other in its first dimension.

    Of a tied pair upstream writes the head alone, which is the embedding then.

    Raises:
        CheckpointError: a tensor belongs to no part.
    """
    found = {key: _canonical_names(key, path) for key in keys}
    if tied and _EMBEDDING not in keys and _HEAD in keys:
        found[_HEAD] = _canonical_names(_EMBEDDING, path)
    return found


def _canonical_names(key: str, path: Path) -> tuple[str, ...]:
    found = [ours + end for theirs, ours, end in _matches(key, 0)]
    if not found:
        starts = "vision_encoder., MP.proj., decoder."
        raise CheckpointError(
            f"{path}: tensor {key!r} belongs to no part. Expected names that start with {starts}"
        )
    # "decoder.blocks.N.attn." is also the start of "decoder.blocks.N.attn.out_proj.", which comes first.
    return tuple(found if "qkv_proj" in key else found[:1])


def stored_name(name: str) -> str:
    """The inverse: what upstream calls the tensor that holds ours."""
    return next((theirs + end for theirs, _, end in _matches(name, 1)), name)


def _matches(name: str, side: int) -> Iterator[tuple[str, str, str]]:
    """Starts that fit, upstream's and ours, and what stands behind; `side` says whose the name is."""
    layer = _LAYER.search(name)
    general = _LAYER.sub("N", name)
    for pair in _NAMES:
        if general.startswith(pair[side]):
            theirs, ours = (start.replace("N", layer[0]) if layer else start for start in pair)
            yield theirs, ours, general[len(pair[side]) :]
