"""Every layer's output of a checkpoint's tower, as upstream computes it and with llama.cpp's mistake."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.metrics import snr_db

Floats = npt.NDArray[np.float32]
_ALIKE_DB = 25.0


@torch.no_grad()
def all_states(reference: CheckpointReference, pixels: Floats) -> list[Floats]:
    """Of every layer, the embeddings' output first: [tokens, vision hidden], no token dropped."""
    output = reference.model.vision_tower.model(
        pixel_values=torch.from_numpy(pixels)[None], output_hidden_states=True
    )
    return [state[0].numpy() for state in output.hidden_states]


@torch.no_grad()
def states_class_token_last(reference: CheckpointReference, pixels: Floats) -> list[Floats]:
    """The same of a CLIP tower whose class token is behind the patches, with positions in that order."""
    model: Any = reference.model.vision_tower.model
    model = getattr(model, "vision_model", model)
    embeddings = model.embeddings
    patches = embeddings.patch_embedding(torch.from_numpy(pixels)[None]).flatten(2).transpose(1, 2)
    rows = torch.cat([patches, embeddings.class_embedding[None, None]], dim=1)
    states = [model.pre_layrnorm(rows + embeddings.position_embedding.weight[None])]
    for layer in model.encoder.layers:
        output = layer(states[-1], None)
        states.append(output[0] if isinstance(output, tuple) else output)
    return [state[0].numpy() for state in states]


@torch.no_grad()
def connect(reference: CheckpointReference, rows: Floats) -> Floats:
    """[tokens, vision hidden] -> [tokens, hidden] by the checkpoint's connector."""
    made: Floats = reference.model.connector(torch.from_numpy(rows)[None])[0].numpy()
    return made


def tower_cause(reference: CheckpointReference, pixels: Floats, found: Floats, layers_run: int | None) -> str:
    """Which known mistake gives these features [tokens, vision hidden], every token of the file's there."""
    used = reference.config.vision.num_used_layers
    states = all_states(reference, pixels)
    for first in (0, 1):  # with and without token 0
        rows = [state[first:] for state in states]
        if rows[0].shape == found.shape:
            nearest = int(np.argmax([snr_db(row, found) for row in rows]))
            if nearest != used and snr_db(rows[nearest], found) > _ALIKE_DB:
                text = f"equal to hidden_states[{nearest}], the checkpoint uses hidden_states[{used}]"
                is_short = layers_run == used - 1 == nearest
                known = ", as of llama.cpp's converter (its issue 25817)" if is_short else ""
                return (
                    f"{text}: {abs(used - nearest)} layer(s) too {'few' if nearest < used else 'many'}{known}"
                )
    if reference.config.vision.architecture == "clip_vision_model":
        mistaken = states_class_token_last(reference, pixels)[used]
        if mistaken.shape == found.shape and snr_db(mistaken, found) > _ALIKE_DB:
            return (
                "the class token is behind the patches and has the last position, every patch the one of its "
                "neighbour: llama.cpp's graph (its issue 25814)"
            )
    return "the tower computes something else: weights, activation, epsilon or positions"
