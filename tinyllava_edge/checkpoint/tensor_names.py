"""Names of tensors, as each layout's files have them, to the one set of names that this program uses.

They start with `vision_tower.`, `connector.` or `language_model.`, followed by what upstream writes behind
its own prefix. Source: docs/sources/tinyllava.md#checkpoint-layouts.
"""

import re
from pathlib import Path

from tinyllava_edge.errors import CheckpointError, UnsupportedModelError

from .layouts import LEGACY, LLAVA, LORA

# Prefix of each part in a flat file, and ours. The first that fits counts.
UPSTREAM_PREFIXES = {
    "language_model.": "language_model.",
    "vision_tower._vision_tower.": "vision_tower.",
    "connector._connector.": "connector.",
}
LEGACY_PREFIXES = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.": "connector.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
LLAVA_PREFIXES = {
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
_TOWER_WITHOUT_WRAPPER = tuple(
    f"vision_tower.{name}"
    for name in ("embeddings.", "encoder.", "post_layernorm.", "pre_layrnorm.", "head.")
)
PREFIXES = {LEGACY: LEGACY_PREFIXES, LLAVA: LLAVA_PREFIXES}


# Ends of the names of values that are computed, not learned; a file may hold them or not.
BUFFERS = (".position_ids", ".rotary_emb.inv_freq")
_ADAPTED = re.compile(r"\.(?:lora_[AB]|lora_magnitude_vector|base_layer|modules_to_save)\.")


def canonical_name(key: str, prefixes: dict[str, str], path: Path) -> str:
    """Our name of a tensor of a flat file.

    Raises:
        CheckpointError: it belongs to no part.
        UnsupportedModelError: it is of an adapter that was not merged.
    """
    for prefix, ours in prefixes.items():
        if key.startswith(prefix):
            name = ours + key[len(prefix) :]
            if prefixes is LLAVA_PREFIXES and name.startswith(_TOWER_WITHOUT_WRAPPER):
                name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
            return _merged(name, path)
    raise CheckpointError(
        f"{path}: tensor {key!r} belongs to no part. Expected names that start with {', '.join(prefixes)}."
    )


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
