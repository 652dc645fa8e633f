"""A trained model -> TinyLLaVA Factory's flat safetensors layout (spec/tinyllava.md section 3.2)."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tinyllava_edge.errors import DataError
from tinyllava_edge.model.checkpoint import FLAT_FILE
from tinyllava_edge.model.vlm import TinyLlava, upstream_state_dict


def write_weights(model: TinyLlava, directory: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors`.

    Raises:
        DataError: a weight is not finite in `dtype`; the training went astray.
    """
    state = {
        name: tensor.detach().to(dtype).contiguous() for name, tensor in upstream_state_dict(model).items()
    }
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"{name}: not finite in {dtype}. The training diverged: lower the learning rate, or check "
                "the data."
            )
    save_file(state, directory / FLAT_FILE, metadata={"format": "pt"})
    (directory / FLAT_FILE).chmod(0o644)  # safetensors makes it private
