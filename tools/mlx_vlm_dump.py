"""What mlx-vlm computes from `export --interchange transformers`, as arrays for `verify --against`.

    .peers/mlx-vlm/bin/python tools/mlx_vlm_dump.py LLAVA PICTURE OUTPUT.npz

For mlx-vlm's own environment, where nothing of ours is installed (`make against-mlx-vlm`). Pixels are from
transformers' image processor, which is what mlx-vlm's processor calls; that one itself fails in 0.7.10 with
transformers 5 (it hands `padding` to an image processor that does not take it).
"""

import sys
from pathlib import Path
from typing import Any

QUESTION = "What kind of thing is this?"


def dump(model_path: Path, picture_path: Path) -> dict[str, Any]:
    """The arrays that `verify --against` knows by name (docs/against.md), in float32."""
    import mlx.core as mx
    import numpy as np
    from mlx_vlm.utils import load_model
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer

    model: Any = load_model(model_path)
    picture = np.asarray(Image.open(picture_path).convert("RGB"))
    processor: Any = AutoImageProcessor  # untyped
    pixels = processor.from_pretrained(model_path)(picture, return_tensors="np")["pixel_values"]
    given = mx.array(pixels).astype(model.multi_modal_projector.linear_1.weight.dtype)
    *_, states = model.vision_tower(given.transpose(0, 2, 3, 1), output_hidden_states=True)
    selected = states[model.vision_feature_layer]
    if model.vision_feature_select_strategy == "default":
        selected = selected[:, 1:]
    ids = AutoTokenizer.from_pretrained(model_path)(QUESTION, return_tensors="np")["input_ids"]
    found = {f"hidden_states.{number}": state for number, state in enumerate(states)}
    found |= {"tower": selected, "embeddings": model.multi_modal_projector(selected)}
    found["logits"] = model.language_model(mx.array(ids)).logits
    arrays = {name: np.array(value.astype(mx.float32)) for name, value in found.items()}
    return {"picture": picture, "pixels": pixels, "ids": ids, **arrays}


if __name__ == "__main__":
    import numpy

    numpy.savez(sys.argv[3], **dump(Path(sys.argv[1]), Path(sys.argv[2])))
