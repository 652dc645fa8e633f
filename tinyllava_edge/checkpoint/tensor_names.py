"""Names of tensors, as each layout's files have them, to the one set of names that this program uses.

They start with `vision_tower.`, `connector.` or `language_model.`, followed by what upstream writes behind
its own prefix. Source: docs/sources/tinyllava.md#checkpoint-layouts.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .layouts import LORA
from .values import MAX_LAYERS

# Prefix of each part in a file, and ours; None for what the model has not. The first that fits counts.
Prefixes = Mapping[str, str | None]
UPSTREAM_PREFIXES: dict[str, str] = {
    "language_model.": "language_model.",
    "vision_tower._vision_tower.": "vision_tower.",
    "connector._connector.": "connector.",
}
# docs/sources/llava_line.md#keys-of-the-weights
LINE_TOWERS = ("model.vision_tower.", "model.image_tower.")
LINE_PREFIXES: Prefixes = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "model.image_tower.image_tower.": "vision_tower.",
    "model.mm_projector.image_spatial_proj.": "connector.",
    "model.mm_projector.": "connector.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
LLAVA_PREFIXES: Prefixes = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.linear_1.": "connector.0.",
    "model.multi_modal_projector.linear_2.": "connector.2.",
    "language_model.": "language_model.",
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.linear_1.": "connector.0.",
    "multi_modal_projector.linear_2.": "connector.2.",
    "lm_head.": "language_model.lm_head.",
}
# transformers 5 saves SigLIP and CLIP without `vision_model.`.
_BARE_TOWER = ("embeddings.", "encoder.", "post_layernorm.", "pre_layrnorm.", "head.")
_TOWER_WITHOUT_WRAPPER = tuple(f"vision_tower.{name}" for name in _BARE_TOWER)
_OF_CLIP_ALONE = ("text_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias")
# A tower's own repository, which has the text's side beside it.
TOWER_PREFIXES: Prefixes = {
    "vision_model.": "vision_tower.vision_model.",
    **{name: f"vision_tower.{name}" for name in _BARE_TOWER},
    **dict.fromkeys(_OF_CLIP_ALONE),
}
_LAYER = re.compile(r"vision_tower\.vision_model\.(?:encoder\.layers\.(\d+)|head)\.")


# Ends of the names of values that are computed, not learned; a file may hold them or not.
BUFFERS = (".position_ids", ".rotary_emb.inv_freq")
_ADAPTED = re.compile(r"\.(?:lora_[AB]|lora_magnitude_vector|base_layer|modules_to_save)\.")


def canonical_name(key: str, prefixes: Prefixes, path: Path) -> str | None:
    """Our name of a tensor of a flat file; None where it is of a part that the model has not.

    Raises:
        CheckpointError: it belongs to no part.
        UnsupportedModelError: it is of an adapter that was not merged.
    """
    for prefix, ours in prefixes.items():
        if key.startswith(prefix):
            if ours is None:
                return None
            name = ours + key[len(prefix) :]
            if prefixes is not UPSTREAM_PREFIXES and name.startswith(_TOWER_WITHOUT_WRAPPER):
                name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
            return _merged(name, path)
    raise CheckpointError(
        f"{path}: tensor {key!r} belongs to no part. Expected names that start with {', '.join(prefixes)}."
    )


def stored_name(name: str, prefixes: Prefixes, keys: Iterable[str]) -> str:
    """What a flat file that has these names calls, or would call, the tensor of one of ours."""
    fits = [theirs for theirs, ours in prefixes.items() if ours and name.startswith(ours)]
    used = [theirs for theirs in fits if any(key.startswith(theirs) for key in keys)]
    theirs = next(iter(used or fits[-1:]), "")
    return theirs + name.removeprefix(prefixes.get(theirs) or "")


def layer_of_tower(name: str) -> int:
    """The encoder layer that a tensor is of, from 0; -1 in front of them all, the largest for a head."""
    match = _LAYER.match(name)
    return -1 if match is None else int(match[1] or MAX_LAYERS)


def canonical_name_in_folder(key: str, part: str, layout: str, path: Path) -> str:
    """Our name of a tensor of a part's own file.

    A connector's keys have a wrapper, `_connector.0.weight`, and a LoRA's base has `.base_layer.` in its.
    """
    name = f"{part}.{key.removeprefix(f'_{part}.')}"
    return _merged(name.replace(".base_layer.", ".") if layout == LORA else name, path)


def _merged(name: str, path: Path) -> str:
    if _ADAPTED.search(name):
        raise UnsupportedModelError(
            f"{path}: {name!r} is of a LoRA adapter that was not merged when the weights were saved, or when "
            "another was trained on it, and its alpha is not here. Merge it into its own base first."
        )
    return name
