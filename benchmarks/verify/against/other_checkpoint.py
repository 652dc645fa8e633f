"""Another checkpoint of the same model, in any layout that is read: transformers' LLaVA above all."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.image import preprocess
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.vlm import checked_tensors

from .findings import LEAST_TENSOR_DB, Finding, fact, lowest_snr, pixels, tensor_snr_db
from .vision_graph import processor_cause


def checkpoint_findings(
    other: Checkpoint, reference: CheckpointReference, assets: Assets
) -> Iterator[Finding]:
    """Facts of config.json, every tensor, and pixels by its own processor.

    Raises:
        CheckpointError: it is damaged or not supported.
    """
    mine, theirs = reference.config, other.config
    for part, expected in mine.architectures.items():
        yield fact(part, expected, theirs.architectures[part])
    for name in ("feature_layer", "select_strategy", "image_size", "hidden_act"):
        yield fact(name, getattr(mine.vision, name), getattr(theirs.vision, name))
    if mine.architectures != theirs.architectures:
        return
    yield _weights(reference, other)
    how = read_assets(other).preprocessing
    for number in (0, 3, 5):
        trial = reference.pictures[number]
        level = assets.preprocessing.rescale_factor / assets.preprocessing.std[0]
        yield pixels(
            f"{trial.name} {trial.size[0]}x{trial.size[1]}",
            reference.pixels(number),
            preprocess(Image.fromarray(trial.upright), how),
            level,
            lambda: processor_cause(how, assets.preprocessing),
        )


def _weights(reference: CheckpointReference, other: Checkpoint) -> Finding:
    """The tensor that is furthest off; rows that were added behind a vocabulary do not count."""
    from tinyllava_edge.model.vlm import canonical_parameters

    mine = dict(canonical_parameters(reference.model))
    worst: tuple[float, str] = (np.inf, "every tensor is equal")
    for name, tensor in checked_tensors(other):
        if name in mine:
            expected = mine[name].detach().numpy()
            found = tensor.float().numpy()[: len(expected)]
            if found.shape != expected.shape:
                said = f"shape {list(found.shape)}, expected {list(expected.shape)}"
                return Finding(stage="weights", what=name, gate=said, passed=False, cause=said)
            worst = min(worst, (tensor_snr_db(expected, found), name))
    return lowest_snr(worst, least=LEAST_TENSOR_DB)
