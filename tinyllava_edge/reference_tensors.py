"""The reference/ folder of a bundle: what torch computed in float32 at export, for a device without torch.

`reference.json` has the prompts, `reference.npz` the tensors; pictures are files beside them. docs/bundle.md
says what each field means.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from tinyllava_edge.bundle import REFERENCE_FOLDER, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BundleError
from tinyllava_edge.prompt import Turn

Floats = npt.NDArray[np.float32]
_PROMPTS, _TENSORS = f"{REFERENCE_FOLDER}/reference.json", f"{REFERENCE_FOLDER}/reference.npz"


class ReferencePrompt(BaseModel, frozen=True):
    """A prompt, as its turns and as ids, and its greedy answer."""

    name: str
    turns: tuple[Turn, ...]
    pictures: tuple[int, ...]
    input_ids: tuple[int, ...]
    positions: int
    logit_positions: tuple[int, ...]
    greedy_ids: tuple[int, ...]
    greedy_margins: tuple[float, ...]


class _Contents(BaseModel):
    pictures: tuple[str, ...]
    image_token_id: int
    prompts: tuple[ReferencePrompt, ...]


@dataclass(frozen=True, kw_only=True)
class ReferenceTensors:
    """Pictures, what the vision tower and connector make of them, and prompts with their logits by name."""

    pictures: Sequence[Path]
    pixels: Floats  # [pictures, 3, h, w]
    tower: Floats  # [pictures, tokens, vision hidden]
    embeddings: Floats  # [pictures, tokens, hidden]
    prompts: Sequence[ReferencePrompt]
    logits: Mapping[str, Floats]  # [positions, vocab]


def write_reference_tensors(root: Path, reference: ReferenceTensors) -> None:
    """Write the folder below a bundle's root, and copy the pictures into it."""
    (root / REFERENCE_FOLDER).mkdir()
    for picture in reference.pictures:
        shutil.copyfile(picture, root / REFERENCE_FOLDER / picture.name)
    names = tuple(picture.name for picture in reference.pictures)
    contents = _Contents(pictures=names, image_token_id=IMAGE_TOKEN_ID, prompts=tuple(reference.prompts))
    text = json.dumps(contents.model_dump(), indent=1, ensure_ascii=False)
    (root / _PROMPTS).write_text(text, encoding="utf-8")
    tensors: dict[str, Floats] = {}
    for index in range(len(names)):
        tensors[f"pixels/{index}"] = reference.pixels[index]
        tensors[f"vision_tower/{index}"] = reference.tower[index]
        tensors[f"embeddings/{index}"] = reference.embeddings[index]
    tensors |= {f"logits/{name}": rows for name, rows in reference.logits.items()}
    np.savez(root / _TENSORS, **tensors)  # type: ignore[arg-type]


def reference_pictures(bundle: Bundle) -> list[Path]:
    """The pictures' files; `Raises` as `read_reference_tensors`."""
    return [bundle.path(f"{REFERENCE_FOLDER}/{name}") for name in _read_contents(bundle).pictures]


def read_reference_tensors(bundle: Bundle) -> ReferenceTensors:
    """Read the folder of a bundle.

    Raises:
        BundleError: the bundle has none, or a tensor, prompt or picture is missing in it.
    """
    prompts, pictures = _read_contents(bundle).prompts, reference_pictures(bundle)
    path = bundle.path(_TENSORS)
    try:
        with np.load(path, allow_pickle=False) as tensors:
            pixels, tower, embeddings = (
                np.stack([tensors[f"{kind}/{index}"] for index in range(len(pictures))])
                for kind in ("pixels", "vision_tower", "embeddings")
            )
            logits = {prompt.name: tensors[f"logits/{prompt.name}"] for prompt in prompts}
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path}: {error}. Export the bundle again.") from None
    return ReferenceTensors(
        pictures=pictures, pixels=pixels, tower=tower, embeddings=embeddings, prompts=prompts, logits=logits
    )


def _read_contents(bundle: Bundle) -> _Contents:
    path = bundle.path(_PROMPTS)
    try:
        return _Contents.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}. Export the bundle again.") from None
