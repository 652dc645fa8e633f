"""How much each input of a language model's matrices matters, for llama.cpp's quantizer to weigh errors by.

An importance matrix ("imatrix") has, for each matrix, the mean square of every value that it is multiplied
with. Here that is measured where a device computes: on whole prompts, a picture's embeddings between rows of
text, by torch on the checkpoint. Head and token embedding have none, as of llama.cpp's own tool.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import DynamicCache

from tinyllava_edge.errors import DataError, PromptError
from tinyllava_edge.image import Preprocessing, open_picture, preprocess
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.streaming import LANGUAGE
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.prompt import Template, Turn, place_markers
from tinyllava_edge.user_files import read_user_text

from .calibration import calibration_files
from .language_gguf import LanguageSource

IMATRIX_FILE = "imatrix.gguf"
MAX_PROMPTS = 64
QUESTION = "What can you see?"  # of a picture that nobody asked anything about
_MATRICES = "blk."  # begins the names of those that are measured


@dataclass(frozen=True, kw_only=True)
class PictureTurns:
    """A conversation about pictures, its markers placed."""

    turns: Sequence[Turn]
    pictures: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Imatrix:
    """What was measured.

    Attributes:
        mean_squares: [columns], by the matrix's name in a GGUF file.
        prompts: how many were measured with.
        positions: of all of them, rows of pictures and of text.
    """

    mean_squares: Mapping[str, npt.NDArray[np.float32]]
    prompts: int
    positions: int


def read_prompts(
    source: Path, images: Path | None, template: Template, most: int = MAX_PROMPTS
) -> list[PictureTurns]:
    """Prompts to measure with, spread evenly over those there are.

    Args:
        source: training data in LLaVA's form, answers and all, or a folder of pictures, about each of which
            `QUESTION` is asked.
        images: folder that the records' pictures are relative to; the file's own without.
        template: of the prompts.
        most: prompts that are read.

    Raises:
        UsageError: the folder has no picture, or too many.
        DataError: the file has another form, or a record that is read is bad or names a picture that is not
            there.
    """
    if source.is_dir():
        pictures = _spread(calibration_files(source, "imatrix"), most)
        turns = place_markers([(QUESTION, None)], 1, template)
        return [PictureTurns(turns=turns, pictures=(path,)) for path in pictures]
    try:
        records = json.loads(read_user_text(source, error=DataError))
    except (ValueError, RecursionError):
        records = None
    if not isinstance(records, list) or not records:
        raise DataError(
            f"--imatrix {source}: expected a folder of pictures, or a JSON list of records with image and "
            "conversations, as LLaVA's training data."
        )
    folder = source.parent if images is None else images
    read = partial(_prompt, source=source, folder=folder, template=template)
    prompts = [read(at, records[at]) for at in _spread(range(len(records)), most)]
    if not any(prompt.pictures for prompt in prompts):
        raise DataError(
            f"--imatrix {source}: no record names a picture in 'image'. Give data that have some."
        )
    return prompts


def _spread(found: Sequence[Any], most: int) -> list[Any]:
    count = min(len(found), most)
    return [found[len(found) * place // count] for place in range(count)]


def _prompt(at: int, record: Any, *, source: Path, folder: Path, template: Template) -> PictureTurns:
    where = f"--imatrix {source}: record {at}"
    try:
        said = [str(message["value"]) for message in record["conversations"]]
        named = record.get("image") or []
        pictures = tuple(folder / name for name in ([named] if isinstance(named, str) else named))
        placed = place_markers([*zip(said[::2], said[1::2], strict=True)], len(pictures), template)
    except PromptError as error:
        raise DataError(f"{where}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: expected conversations (question and answer in turn, each with its text as value) and "
            "image (a path, or a list of them)."
        ) from None
    if lost := [path for path in pictures if not path.is_file()]:
        raise DataError(f"{where}: {lost[0]}: no such picture. Give the folder that holds it with --images.")
    return PictureTurns(turns=placed, pictures=pictures)


@torch.no_grad()
def measure_imatrix(model: TinyLlava, source: LanguageSource, prompts: Sequence[PictureTurns]) -> Imatrix:
    """Run prompts through the language model, each once, and measure what its matrices are multiplied with.

    Raises:
        ImageError: a picture cannot be read.
    """
    names = _matrices(model, source)
    sums = {layer: torch.zeros(layer.in_features, dtype=torch.float64) for layer in names}
    hooks = [layer.register_forward_pre_hook(partial(_add, total)) for layer, total in sums.items()]
    tokenizer, template, positions = source.assets.text_tokenizer(), source.assets.template, 0
    try:
        for prompt in prompts:
            pictures = picture_embeddings(model, prompt.pictures, source.assets.preprocessing)
            rows = model.splice(tokenizer.encode(template, prompt.turns), pictures)
            rows = rows[: model.config.language.max_position_embeddings]
            positions += len(rows)
            continued_logits(model.language_model, rows[None], DynamicCache(), keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: (sums[layer] / positions).float().numpy() for layer in sums for name in names[layer]}
    return Imatrix(mean_squares=found, prompts=len(prompts), positions=positions)


def _add(total: torch.Tensor, layer: nn.Module, arguments: tuple[torch.Tensor]) -> None:
    total += arguments[0].flatten(end_dim=-2).double().square().sum(dim=0)


def picture_embeddings(model: TinyLlava, pictures: Sequence[Path], how: Preprocessing) -> torch.Tensor:
    """[pictures, tokens, hidden]."""
    pixels = [torch.from_numpy(preprocess(open_picture(path), how)) for path in pictures]
    none = torch.zeros(0, 0, model.config.language.hidden_size)
    return torch.cat([model.encode(one[None]) for one in pixels]) if pixels else none


def _matrices(model: TinyLlava, source: LanguageSource) -> dict[nn.Linear, list[str]]:
    """The layers that are measured, and what a GGUF file, which keeps some in parts, calls their weights."""
    rules, split = source.rules(), source.architecture().split
    found: dict[nn.Linear, list[str]] = {}
    for name, layer in model.language_model.named_modules():
        if isinstance(layer, nn.Linear):
            parts = split(f"{name}.weight", layer.weight)
            names = [rules[LANGUAGE + part].name for part, _ in parts if LANGUAGE + part in rules]
            if names and names[0].startswith(_MATRICES):
                found[layer] = names
    return found


def write_imatrix(path: Path, imatrix: Imatrix, source: str) -> None:
    """Write a file in the form of llama.cpp's own, for its `llama-quantize --imatrix`.

    Source: llama.cpp, tools/imatrix/imatrix.cpp (save_imatrix), common/imatrix-loader.cpp.
    """
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [source])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.prompts)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, max(1, imatrix.positions // imatrix.prompts))
    for name, values in imatrix.mean_squares.items():
        writer.add_tensor(f"{name}.in_sum2", values * np.float32(imatrix.positions))
        writer.add_tensor(f"{name}.counts", np.array([imatrix.positions], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
