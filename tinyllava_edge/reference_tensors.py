"""The reference/ folder of a bundle: what torch computed in float32 at export, for a device without torch.

`reference.json` has the prompts, `reference.npz` the tensors; pictures are files beside them. A smaller
budget of visual tokens has its own prompts and embeddings beside those. docs/bundle.md says what each field
means.
"""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllava_edge.bundle import REFERENCE_FOLDER, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BundleError, PromptError, UsageError
from tinyllava_edge.manifest import Manifest
from tinyllava_edge.prompt import Turn, check_turns, place_markers

Floats = npt.NDArray[np.float32]
_MAX_PROMPTS_BYTES = 8 << 20
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
_AGAIN = "Copy or export the bundle again."


class ReferencePrompt(BaseModel):
    """A prompt, as its turns and as ids, and its greedy answer."""

    model_config = _STRICT
    name: str
    turns: tuple[Turn, ...]
    pictures: tuple[int, ...]
    input_ids: tuple[int, ...]
    positions: int
    logit_positions: tuple[int, ...]
    greedy_ids: tuple[int, ...]
    greedy_margins: tuple[float, ...]


class _Contents(BaseModel):
    model_config = _STRICT
    pictures: tuple[str, ...] = Field(min_length=1)
    image_token_id: int = Field(ge=IMAGE_TOKEN_ID, le=IMAGE_TOKEN_ID)
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


def write_reference_tensors(root: Path, reference: ReferenceTensors, budget: int | None = None) -> None:
    """Write the folder below a bundle's root, and copy the pictures into it.

    Args:
        root: of the bundle.
        reference: what is written.
        budget: of visual tokens, whose prompts and embeddings join a folder that is there already.
    """
    tensors: dict[str, Floats] = {}
    if budget is None:
        (root / REFERENCE_FOLDER).mkdir()
    for index, picture in enumerate(reference.pictures):
        if budget is None:
            shutil.copyfile(picture, root / REFERENCE_FOLDER / picture.name)
            tensors[f"pixels/{index}"] = reference.pixels[index]
            tensors[f"vision_tower/{index}"] = reference.tower[index]
        tensors[f"embeddings/{index}"] = reference.embeddings[index]
    names = tuple(picture.name for picture in reference.pictures)
    contents = _Contents(pictures=names, image_token_id=IMAGE_TOKEN_ID, prompts=tuple(reference.prompts))
    text = json.dumps(contents.model_dump(), indent=1, ensure_ascii=False)
    prompts, arrays = _files(budget)
    (root / prompts).write_text(text, encoding="utf-8")
    tensors |= {f"logits/{name}": rows for name, rows in reference.logits.items()}
    np.savez(root / arrays, **tensors)  # type: ignore[arg-type]


def _files(budget: int | None) -> tuple[str, str]:
    """Prompts and tensors of a budget of visual tokens, or of the largest, below a bundle's root."""
    stem = f"{REFERENCE_FOLDER}/{'reference' if budget is None else f'tokens-{budget}'}"
    return f"{stem}.json", f"{stem}.npz"


def _files_of(bundle: Bundle) -> tuple[str, str]:
    """Those of the budget that a bundle was opened at."""
    smaller = _files(bundle.manifest.vision.num_tokens)
    listed = {entry.path for entry in bundle.manifest.files}
    return smaller if listed.issuperset(smaller) else _files(None)


def reference_pictures(bundle: Bundle) -> list[Path]:
    """The pictures' files; `Raises` as `read_reference_tensors`."""
    return [bundle.path(f"{REFERENCE_FOLDER}/{name}") for name in _read_contents(bundle).pictures]


def read_reference_tensors(bundle: Bundle) -> ReferenceTensors:
    """Read the folder of a bundle. What is read fits the manifest, whether or not it is right.

    Raises:
        BundleError: the bundle has none, or a tensor, prompt or picture is missing, damaged or impossible.
    """
    prompts, pictures = _read_contents(bundle).prompts, reference_pictures(bundle)
    own, shared = _files_of(bundle)[1], _files(None)[1]
    vision, vocab = bundle.manifest.vision, bundle.manifest.language.vocab_size
    side, numbers = vision.image_size, range(len(pictures))
    try:
        with bundle.open_file(shared) as file, ZipFile(file) as archive:
            pixels = [_read_array(archive, f"pixels/{n}", (3, side, side)) for n in numbers]
            tower = [_read_array(archive, f"vision_tower/{n}", (None, None)) for n in numbers]
        with bundle.open_file(own) as file, ZipFile(file) as archive:
            embeddings = [
                _read_array(archive, f"embeddings/{n}", (vision.num_tokens, vision.hidden_size))
                for n in numbers
            ]
            logits = {
                prompt.name: _read_array(
                    archive, f"logits/{prompt.name}", (len(prompt.logit_positions), vocab)
                )
                for prompt in prompts
            }
            return ReferenceTensors(
                pictures=pictures,
                pixels=np.stack(pixels),
                tower=np.stack(tower),
                embeddings=np.stack(embeddings),
                prompts=prompts,
                logits=logits,
            )
    except BundleError:
        raise
    except Exception as error:  # zipfile and numpy raise ten kinds for a damaged file
        raise BundleError(f"{bundle.root / own}: {type(error).__name__}: {error}. {_AGAIN}") from None


def _read_array(archive: ZipFile, name: str, shape: tuple[int | None, ...]) -> Floats:
    """One array of what `np.savez` wrote, its header checked before memory is asked for.

    Args:
        archive: the file.
        name: of the array.
        shape: what it must be; None stands for any size.
    """
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        version = np.lib.format.read_magic(file)
        found, is_fortran, kind = np.lib.format.read_array_header_1_0(file)
        fits = len(found) == len(shape) and all(w in (None, f) for w, f in zip(shape, found, strict=True))
        if version != (1, 0) or kind != np.dtype("<f4") or not fits:
            wanted = str(list(shape)).replace("None", "any")
            raise ValueError(f"{name}: {list(found)} {kind}, expected {wanted} float32")
        is_stored = entry.compress_type == ZIP_STORED
        if not is_stored or prod(found) * kind.itemsize != entry.file_size - file.tell():
            raise ValueError(f"{name}: {entry.file_size} bytes do not hold {list(found)} float32")
        values = np.frombuffer(file.read(), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values.reshape(found[::-1]).T if is_fortran else values.reshape(found)


def _read_contents(bundle: Bundle) -> _Contents:
    name = _files_of(bundle)[0]
    path, text = bundle.root / name, bundle.read_text(name, _MAX_PROMPTS_BYTES)
    try:
        contents = _Contents.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where[:200]}: {first['msg']}. {_AGAIN}") from None
    names = [prompt.name for prompt in contents.prompts]
    faults = [_fault(prompt, len(contents.pictures), bundle.manifest) for prompt in contents.prompts]
    for number, fault in enumerate(faults):
        if names[number] in names[:number]:
            fault = "is there twice"
        if fault:
            raise BundleError(f"{path}: prompt {names[number]!r:.100} {fault}. {_AGAIN}")
    return contents


def _fault(prompt: ReferencePrompt, num_pictures: int, manifest: Manifest) -> str:
    """What of a prompt cannot be with this model, or ""."""
    language, ids = manifest.language, prompt.input_ids
    try:
        check_turns(prompt.turns)
        place_markers(prompt.turns, len(prompt.pictures), manifest.prompt.template)
    except (PromptError, UsageError) as error:
        return f"has turns that nobody can ask: {str(error).rstrip('.')}"
    texts = [token for token in ids if token != IMAGE_TOKEN_ID]
    markers = len(ids) - len(texts)
    positions = len(texts) + markers * manifest.vision.num_tokens
    stored = prompt.logit_positions
    possible = {
        "pictures": all(0 <= index < num_pictures for index in prompt.pictures),
        "input_ids": all(0 <= token < language.vocab_size for token in texts)
        and markers == len(prompt.pictures),
        "positions": prompt.positions == positions <= language.context_length - len(prompt.greedy_ids),
        "logit_positions": 0 < len(stored) <= positions
        and stored == tuple(range(positions - len(stored), positions)),
        "greedy_ids": len(prompt.greedy_ids) > 0
        and all(0 <= token < language.vocab_size for token in prompt.greedy_ids),
        "greedy_margins": len(prompt.greedy_margins) == len(prompt.greedy_ids)
        and min(prompt.greedy_margins) >= 0,
    }
    wrong = [name for name, is_possible in possible.items() if not is_possible]
    return f"has impossible {', '.join(wrong)}" if wrong else ""
