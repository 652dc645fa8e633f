"""Language model of a checkpoint -> GGUF, in float32 or float16.

Tensors stream from the checkpoint's files to their place in the output, one at a time and in whatever order
they come; the file is the same for every layout of the same weights. Vectors (norms, biases) are always
float32, as llama.cpp expects. Quantized types are made from this file by `quantize.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tinyllava_edge.atomic_files import reserve
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError
from tinyllava_edge.model.assets import Assets
from tinyllava_edge.model.checkpoint import iter_tensors, tensor_facts
from tinyllava_edge.model.streaming import LANGUAGE
from tinyllava_edge.precisions import FLOAT16_MAX

from .gguf_arch import ARCHITECTURES, GgufArchitecture, TensorRule
from .gguf_vocabulary import Vocabulary, add_vocabulary, build_vocabulary
from .interchange.picture_prompt import PicturePrompt, chat_template, picture_prompt

FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
OnProgress = Callable[[int, int], None]  # what is done, of how much


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class LanguageSource:
    """A checkpoint's language model, and what its GGUF file says besides the weights."""

    checkpoint: Checkpoint
    assets: Assets
    name: str

    def architecture(self) -> GgufArchitecture:
        """The family's module."""
        return ARCHITECTURES[self.checkpoint.config.language.architecture]

    def vocabulary(self) -> Vocabulary:
        """The tokenizer, one token for each row of the embedding."""
        return build_vocabulary(self.assets.tokenizer, self.checkpoint.config.language.vocab_size)

    def picture_prompt(self) -> PicturePrompt:
        """The text around a picture for llama.cpp's own programs, with an mmproj file beside."""
        return picture_prompt(self.assets, self.checkpoint.config.vision)

    def rules(self) -> dict[str, TensorRule]:
        """Every tensor that there must be, by its canonical name."""
        tensors = self.architecture().tensors(self.checkpoint.config.language)
        return {LANGUAGE + name: rule for name, rule in tensors.items()}

    def computed(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Vectors of the file that no tensor of the checkpoint gives, by their names in it."""
        vectors = self.architecture().computed(self.checkpoint.config.language)
        return {name: np.array(values, dtype=np.float32) for name, values in vectors.items()}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that the GGUF file keeps, by canonical name, one at a time."""
        split = self.architecture().split
        for name, tensor in self.stored_tensors():
            for own_name, own in split(name, tensor):
                yield LANGUAGE + own_name, own

    def stored_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the language model as the checkpoint has it, by torch's name, one at a time."""
        for name, tensor in iter_tensors(self.checkpoint, part="language_model"):
            if not self._is_ignored(name):
                yield name.removeprefix(LANGUAGE), tensor

    def stored_names(self) -> list[str]:
        """Names of `stored_tensors`, of which nothing is read."""
        names = filter(lambda name: name.startswith(LANGUAGE), tensor_facts(self.checkpoint))
        return [name.removeprefix(LANGUAGE) for name in names if not self._is_ignored(name)]

    def _is_ignored(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor although the model has no such parameter."""
        if name == f"{LANGUAGE}lm_head.weight":
            return self.checkpoint.config.language.tie_word_embeddings
        return name.endswith(".rotary_emb.inv_freq")

    def check(self) -> None:
        """Find what cannot be converted before any work is done.

        Raises:
            UnsupportedModelError: llama.cpp has no such variety of the family.
            ExportError: the tokenizer has no counterpart in llama.cpp.
        """
        self.architecture().metadata(self.checkpoint.config.language)
        self.vocabulary()


def write_language_gguf(
    path: Path, source: LanguageSource, float_type: str, *, on_progress: OnProgress = no_progress
) -> None:
    """Write the language model, with a few rows of one tensor in memory at a time.

    Args:
        path: written.
        source: the checkpoint.
        float_type: of the matrices, one of `FILE_TYPES`.
        on_progress: called with the tensors written, and all that there are.

    Raises:
        ExportError: a tensor is missing, left over, of another shape, not finite, or too large for float16;
            the message names it.
        DiskFullError: there is no room.
    """
    rules = source.rules()
    offsets, end = _write_header(path, source, rules, float_type)
    reserve(path, end)
    missing = dict(rules)
    with path.open("r+b") as file:
        for name, vector in source.computed().items():
            file.seek(offsets[name])
            vector.tofile(file)
        for name, tensor in source.tensors():
            rule = missing.pop(name, None)
            if rule is None:
                raise ExportError(f"{source.checkpoint}: tensor {name!r} has no place in the GGUF file.")
            _check_tensor(name, tensor, rule, float_type)
            file.seek(offsets[rule.name])
            for rows in rule.slices():
                converted = rule.convert(tensor[rows].float()).contiguous().numpy()
                converted.astype(_dtype(rule, float_type), copy=False).tofile(file)
            on_progress(len(rules) - len(missing), len(rules))
    if missing:
        raise ExportError(
            f"{source.checkpoint}: {len(missing)} tensors of the language model are missing, the first is "
            f"{next(iter(missing))!r}."
        )


def write_vocabulary_gguf(path: Path, source: LanguageSource) -> None:
    """Write a file without weights, of which llama.cpp reads the vocabulary."""
    _write_header(path, source, {}, "f32")


def _write_header(
    path: Path, source: LanguageSource, rules: dict[str, TensorRule], float_type: str
) -> tuple[dict[str, int], int]:
    """Write everything before the weights; returns each tensor's offset, and the file's length."""
    llamacpp = source.checkpoint.config.language.family.llamacpp
    writer = gguf.GGUFWriter(path, llamacpp)
    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_file_type(FILE_TYPES[float_type])
    for key, value in source.architecture().metadata(source.checkpoint.config.language).items():
        name = f"{llamacpp}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    add_vocabulary(writer, source.vocabulary(), source.assets.tokenizer)
    writer.add_chat_template(chat_template(source.assets.template, source.picture_prompt().before))
    sizes = {}
    for rule in rules.values():
        dtype = _dtype(rule, float_type)
        sizes[rule.name] = int(np.prod(rule.shape)) * dtype.itemsize
        writer.add_tensor_info(rule.name, rule.shape, dtype, sizes[rule.name])
    for name, vector in source.computed().items():
        sizes[name] = vector.nbytes
        writer.add_tensor_info(name, vector.shape, vector.dtype, vector.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    offset = _aligned(path.stat().st_size)
    offsets = {}
    for name, size in sizes.items():
        offsets[name] = offset
        offset += _aligned(size)
    return offsets, offset


def _aligned(size: int) -> int:
    return gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT)


def _dtype(rule: TensorRule, float_type: str) -> np.dtype[np.floating]:
    half = float_type == "f16" and len(rule.shape) > 1
    return np.dtype(np.float16 if half else np.float32)


def _check_tensor(name: str, tensor: torch.Tensor, rule: TensorRule, float_type: str) -> None:
    """Every check that can be made of a tensor before it is written."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ExportError(f"tensor {name!r} is {tensor.dtype}; expected float32, float16 or bfloat16.")
    if tuple(tensor.shape) != rule.shape:
        raise ExportError(
            f"tensor {name!r} has shape {list(tensor.shape)}, config.json asks for {list(rule.shape)}."
        )
    lowest, highest = tensor.aminmax()  # takes no memory, and NaN goes through it
    largest = max(-float(lowest), float(highest))
    if not np.isfinite(largest):
        raise ExportError(f"tensor {name!r} holds NaN or infinity. The checkpoint is damaged.")
    if _dtype(rule, float_type) == np.float16 and largest > FLOAT16_MAX:
        raise ExportError(
            f"tensor {name!r} has values up to {largest:.6g}, float16 ends at {FLOAT16_MAX:g}. Export "
            "--language without f16, or with bf16."
        )
