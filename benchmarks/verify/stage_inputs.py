"""Ladder stages 3 and 4: prompts and token ids, stop ids, and pixels. All of them exact.

Computed from the bundle's files with the code every runtime uses (`prompt.py`, `image.py`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinyllava_edge import image, prompt
from tinyllava_edge.bounds import at_most
from tinyllava_edge.bundle import TOKENIZER_FILE, PromptSpec
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID

from .ladder import Ladder, StageResult, judge
from .reference import TextCase
from .reference_checkpoint import CheckpointReference
from .upstream_pixels import TrialPicture

Floats = npt.NDArray[np.float32]


def check_text(ladder: Ladder) -> Iterator[StageResult]:
    """Prompt strings, token ids and stop ids are upstream's."""
    spec, reference = ladder.bundle.manifest.prompt, ladder.reference
    tokenizer_json = ladder.bundle.read_text(TOKENIZER_FILE)
    tokenizer = prompt.TextTokenizer(tokenizer_json, bos_id=spec.bos_id, checked=True)
    wrong_prompts: list[tuple[str, str]] = []
    wrong_ids: list[tuple[TextCase, list[int]]] = []
    wrong_plain: list[str] = []
    specials = special_tokens(tokenizer_json)
    for case in reference.texts:
        placed = prompt.place_markers(case.turns, case.num_pictures, spec.template)
        text = spec.template.render(placed)
        if case.prompt is not None and text != case.prompt:
            wrong_prompts.append((case.prompt, text))
        ids = tokenizer.encode(spec.template, placed)
        if tuple(ids) != case.ids:
            wrong_ids.append((case, ids))
        plain = tokenizer.encode(spec.template, placed, honour_special=False)
        if not is_plain(case, plain, specials, spec):
            wrong_plain.append(f"{case.turns!r:.200} gives {plain!r:.200}")
    stops = reference.stop_ids()
    stop_difference = set() if stops is None else stops ^ set(spec.stop_ids)

    def cause() -> str:
        if wrong_prompts:
            return _prompt_cause(*wrong_prompts[0])
        if wrong_ids:
            return _ids_cause(*wrong_ids[0], reference)
        if wrong_plain:
            return f"with special text as plain text, {wrong_plain[0]}"
        return f"stop ids are {sorted(spec.stop_ids)}, expected {sorted(stops or ())}: answers end elsewhere"

    yield judge(
        "text",
        "",
        {
            "wrong_prompts": len(wrong_prompts),
            "wrong_ids": len(wrong_ids),
            "wrong_plain_ids": len(wrong_plain),
            "wrong_stop_ids": len(stop_difference),
        },
        detail=f"{len(reference.texts)} conversations",
        cause=cause,
        gates=tuple(
            at_most(metric, 0)
            for metric in ("wrong_prompts", "wrong_ids", "wrong_plain_ids", "wrong_stop_ids")
        ),
    )


def special_tokens(tokenizer_json: str) -> dict[str, int]:
    """Text and id of the special tokens of a `tokenizer.json`."""
    added = json.loads(tokenizer_json)["added_tokens"]
    return {token["content"]: token["id"] for token in added if token["special"]}


def is_plain(case: TextCase, ids: Sequence[int], specials: Mapping[str, int], spec: PromptSpec) -> bool:
    """Whether typed text gave no special id: BOS and the template's own are the only ones.

    Where no special token's text was typed, ids are upstream's. The unknown token stands for any character
    that has none, so it may appear. A picture's marker is never a token, whatever the vocabulary has.
    """
    typed = "".join(text or "" for turn in case.turns for text in turn).replace(IMAGE_MARKER, "")
    if not any(text in typed for text in specials):
        return tuple(ids) == case.ids
    expected = [] if spec.bos_id is None else [spec.bos_id]
    own = spec.template.render(
        [
            (IMAGE_MARKER if IMAGE_MARKER in question else "", None if answer is None else "")
            for question, answer in case.turns
        ]
    ).replace(IMAGE_MARKER, "")
    pattern = "|".join(re.escape(text) for text in sorted(specials, key=len, reverse=True))
    expected += [specials[text] for text in re.findall(pattern, own)] if specials else []
    counted = {token for text, token in specials.items() if text != "<unk>"}
    return [token for token in ids if token in counted] == expected


def _first_difference(found: Sequence[object], expected: Sequence[object]) -> int:
    pairs = zip(found, expected, strict=False)
    shorter = min(len(found), len(expected))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)


def _prompt_cause(expected: str, found: str) -> str:
    if found.rstrip() == expected.rstrip():
        return (
            f"white space at the end of the prompt: {found[-14:]!r}, expected {expected[-14:]!r} "
            "(a trailing space makes answers repeat)"
        )
    at = _first_difference(found, expected)
    return (
        f"the prompt differs from character {at}: {found[at : at + 20]!r}, expected "
        f"{expected[at : at + 20]!r}"
    )


def _ids_cause(case: TextCase, found: list[int], reference: object) -> str:
    right = list(case.ids)
    tokenizer = reference.tokenizer if isinstance(reference, CheckpointReference) else None
    if tokenizer and case.prompt and found == tokenizer.encode_jointly(case.prompt):
        return "the text after a picture is tokenized together with the text before it, not on its own"
    at = _first_difference(found, right)
    place = f"ids differ from index {at}: {found[at : at + 4]}, expected {right[at : at + 4]}"
    if at and right[at - 1] == IMAGE_TOKEN_ID:
        return f"{place}, right behind a picture: the text pieces are not tokenized on their own"
    return f"{place}, of the turns {case.turns!r:.200}"


@dataclass(frozen=True)
class _WrongPixels:
    picture: TrialPicture
    expected: Floats
    found: Floats


def check_pixels(ladder: Ladder) -> Iterator[StageResult]:
    """Pixels are bit for bit those of transformers' processor."""
    how, reference = ladder.bundle.manifest.vision.preprocessing, ladder.reference
    wrong: list[_WrongPixels] = []
    right: list[TrialPicture] = []
    largest = 0.0
    for index, picture in enumerate(reference.pictures):
        expected = reference.pixels(index)
        found = image.preprocess(image.open_picture(picture.file), how)
        if found.shape == expected.shape and np.array_equal(found, expected):
            right.append(picture)
            continue
        wrong.append(_WrongPixels(picture, expected, found))
        same_shape = found.shape == expected.shape
        largest = max(largest, float(np.max(np.abs(found - expected))) if same_shape else np.inf)
    yield judge(
        "pixels",
        "",
        {"wrong_pictures": len(wrong), "max_abs_difference": largest},
        detail=f"{len(reference.pictures)} pictures",
        cause=lambda: _pixels_cause(wrong, right, how.image_size),
        gates=(at_most("wrong_pictures", 0),),
    )


def _pixels_cause(wrong: Sequence[_WrongPixels], right: Sequence[TrialPicture], side: int) -> str:
    """Which known mistake gives these pixels, or which pictures have them."""
    first = wrong[0]
    if first.found.shape != first.expected.shape:
        return f"{first.picture.name}: pixels {first.found.shape}, expected {first.expected.shape}"
    if all(np.allclose(case.found[::-1], case.expected, atol=1e-5) for case in wrong):
        return "the channels are swapped: BGR for RGB"
    if (colour := _colour_cause(wrong)) is not None:
        return colour
    if any(picture.size == (side, side) for picture in right):
        # Those whose fine detail an antialias filter must remove.
        larger = [case for case in wrong if min(case.picture.size) >= 2 * side]
        if min(_roughness(case.found) / _roughness(case.expected) for case in larger) > 1.1:
            return "pictures that are made much smaller are too rough: resize without antialias"
        return "only resized pictures differ: another resize filter, or another crop or padding"
    names = ", ".join(case.picture.name for case in wrong[:4])
    return f"{len(wrong)} pictures differ: {names}"


def _roughness(pixels: Floats) -> float:
    return float(np.mean(np.abs(np.diff(pixels, axis=2))))


def _colour_cause(wrong: Sequence[_WrongPixels]) -> str | None:
    """Whether found = scale * expected + shift in every channel, as other normalization values give it."""
    said = []
    for channel, name in enumerate(("red", "green", "blue")):
        expected = np.concatenate([case.expected[channel].ravel() for case in wrong]).astype(np.float64)
        found = np.concatenate([case.found[channel].ravel() for case in wrong]).astype(np.float64)
        scale, shift = np.polyfit(expected, found, 1)
        if np.max(np.abs(scale * expected + shift - found)) > 1e-3:
            return None
        if abs(scale - 1) > 1e-4 or abs(shift) > 1e-4:
            said.append((name, scale, shift))
    if all(abs(scale - 1) < 1e-4 for _, scale, _ in said):
        listed = ", ".join(f"{name} {shift:+.4f}" for name, _, shift in said)
        return f"a constant difference in a channel ({listed}): wrong mean"
    listed = ", ".join(f"{name} x{scale:.4f}" for name, scale, _ in said)
    return f"another scale in a channel ({listed}): wrong std or rescale factor"
