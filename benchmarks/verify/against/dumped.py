"""Tensors that another engine dumped (.npz): what it was given, and what it made of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.errors import UsageError
from tinyllava_edge.image import preprocess
from tinyllava_edge.model.assets import Assets

from .findings import Finding, fact, features, logits, pixels
from .tower_states import all_states, connect, tower_cause

Floats = npt.NDArray[np.float32]
_STATE = re.compile(r"hidden_states\.(\d+)")
NAMES = "picture or pixels; hidden_states.N, tower, embeddings; ids with logits"


def dump_findings(path: Path, reference: CheckpointReference, assets: Assets) -> Iterator[Finding]:
    """Arrays by these names: `NAMES`. Leading dimensions of 1 are dropped.

    Raises:
        UsageError: it is no .npz file, or has none of these names.
    """
    found = _arrays(path)
    if not {"picture", "pixels", "ids"} & found.keys():
        raise UsageError(f"--against {path}: has {', '.join(found) or 'nothing'}; expected {NAMES}.")
    _check(path, found, reference)
    if "ids" in found and "logits" in found:
        yield _logits(reference, found["ids"], found["logits"])
    given = found.get("pixels")
    if given is not None and given.shape != (shape := _pixels_shape(reference)):
        yield fact("pixels", list(shape), list(given.shape), stage="pixels")
        return
    if "picture" in found:
        expected = preprocess(Image.fromarray(found["picture"].astype(np.uint8)), assets.preprocessing)
        level = assets.preprocessing.rescale_factor / assets.preprocessing.std[0]
        if given is not None:
            said = "the engine prepares the picture in another way"
            yield pixels("picture", expected, given, level, lambda: said)
        else:
            given = expected
    if given is not None:
        yield from _features(reference, given, found)


def _arrays(path: Path) -> dict[str, Floats]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _squeezed(arrays[name], name) for name in arrays.files}
    except Exception as error:  # numpy's and zipfile's types
        raise UsageError(
            f"--against {path}: no .npz file of plain arrays ({type(error).__name__})."
        ) from None


def _check(path: Path, found: dict[str, Floats], reference: CheckpointReference) -> None:
    """Refuse what nothing can be computed from."""
    vocab_size = len(reference.embedding_table())
    for name, ndim, end, said in (("picture", 3, 256, "[h, w, 3]"), ("ids", 1, vocab_size, "[n]")):
        if (array := found.get(name)) is None:
            continue
        is_whole = array.size and array.min() >= 0 and array.max() < end and not (array % 1).any()
        if not is_whole or array.ndim != ndim or array.shape[2:] not in ((), (3,)):
            raise UsageError(
                f"--against {path}: {name} {list(array.shape)}, expected {said} of whole numbers below {end}."
            )


def _pixels_shape(reference: CheckpointReference) -> tuple[int, int, int]:
    side = reference.config.vision.image_size
    return 3, side, side


def _features(reference: CheckpointReference, given: Floats, found: dict[str, Floats]) -> Iterator[Finding]:
    """From the engine's own pixels, so that what is wrong with them is not counted again."""
    states = all_states(reference, given)
    first = int(reference.config.vision.drop_first)
    numbered = {int(match[1]): name for name in found if (match := _STATE.fullmatch(name))}
    for number in sorted(numbered):
        name = numbered[number]
        if number < len(states):
            yield features("tower", name, states[number], found[name])
        else:
            said = f"the checkpoint's tower ends at hidden_states.{len(states) - 1}"
            yield Finding(stage="tower", what=name, passed=None, gate=said)
    tower = states[reference.config.vision.num_used_layers][first:]
    if "tower" in found:
        yield features(
            "tower",
            "tower",
            tower,
            found["tower"],
            lambda: tower_cause(reference, given, found["tower"], None),
        )
    if "embeddings" in found:
        yield features("rows", "embeddings", connect(reference, tower), found["embeddings"])


def _logits(reference: CheckpointReference, ids: Floats, given: Floats) -> Finding:
    import torch

    table = reference.embedding_table()
    expected = reference.logits_with({}, torch.from_numpy(table[ids.astype(np.int64)]))
    padding = given.shape[-1] - len(table)
    if padding <= 0:
        return logits("ids", expected, given)
    best = given.argmax(
        axis=-1
    ).max()  # engines pad the vocabulary to a round number; the rows must never win
    if best >= len(table):
        gate = f"no token behind the vocabulary's {len(table)} is the best"
        said = f"token {best} is, which the checkpoint has not"
        return Finding(stage="logits", what="ids", gate=gate, passed=False, cause=said)
    return logits(f"ids, {padding} more than the vocabulary", expected, given[..., : len(table)])


def _squeezed(array: npt.NDArray[np.generic], name: str) -> Floats:
    wanted = 1 if name == "ids" else 3 if name in ("picture", "pixels") else 2
    while array.ndim > wanted and array.shape[0] == 1:
        array = array[0]
    if array.dtype.kind not in "biuf":  # complex numbers would lose a half
        raise ValueError(name)
    return np.asarray(array, dtype=np.float32)
