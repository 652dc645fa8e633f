"""How much room an export needs, before it begins."""

import re
from math import prod

from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.checkpoint import tensor_facts
from tinyllava_edge.precisions import OPENVINO_TYPES

from .language_gguf import FILE_TYPES
from .options import MMPROJ, ExportOptions


def bytes_needed(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """Bytes on the output's disk at the widest point of an export, never too many: headers are left out.

    Tower and connector lie there in float32 while the vision graphs are written; a quantized language model
    is made of a float one beside it.
    """
    sizes = {True: 0, False: 0}  # parameters, by whether they are the language model's
    for name, (shape, _) in tensor_facts(checkpoint).items():
        if not name.endswith("lm_head.weight"):  # tied ones are not stored again
            sizes[name.startswith("language_model.")] += prod(shape)
    halves = 16 * (MMPROJ in options.interchange)
    vision = (sum(_bits(name) for name in options.vision_variants()) + halves) * sizes[False] // 8
    names = options.language_variants()
    graphs = [_bits(name) for name in names if name in OPENVINO_TYPES]
    is_made_of_another = len(graphs) < len(names) and not FILE_TYPES.keys() & set(names)
    beside = max([16 * is_made_of_another, *graphs])  # or a graph's tensors, before they are in its file
    language = (sum(map(_bits, names)) + beside) * sizes[True] // 8
    return max(4 * sizes[False] + vision, vision + language)


def _bits(name: str) -> int:
    """Of a parameter, by the first number in a variant's name: fp16, int8_fp16, q4_k_m."""
    found = re.search(r"\d+", name)
    assert found is not None, f"{name} says no width"
    return int(found[0])
