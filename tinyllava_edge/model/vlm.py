"""The three parts joined, with upstream's splicing (docs/sources/tinyllava.md#splicing)."""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
from torch import nn

from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID, ModelConfig
from tinyllava_edge.checkpoint.layouts import ADAPTER, LORA, NANOVLM
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.tensor_names import BUFFERS, UPSTREAM_PREFIXES
from tinyllava_edge.errors import CheckpointError, PromptError, UnsupportedModelError

from .checkpoint import check_second_copies, iter_tensors, tensor_facts
from .connector import build_connector
from .language_model import build_language_model
from .lora import EIGHT_BITS
from .second_copies import check_buffer
from .vision_tower import build_vision_tower

_NANOVLM_KEYS = {
    "position_embedding": "vit_img_size and vit_patch_size",
    "connector.": "mp_pixel_shuffle_factor, vit_hidden_dim and lm_hidden_dim",
}
_HEAD = "language_model.lm_head.weight"
_UNGATHERED = " ZeRO-3 leaves it so where it gathers no weights: run zero_to_fp32.py beside its global_step."


class TinyLlava(nn.Module):
    """Vision tower, connector and language model of one checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = build_vision_tower(config.vision, config.second_vision)
        self.connector = build_connector(
            config.connector, config.vision.hidden_size, config.language.hidden_size
        )
        self.language_model = build_language_model(config.language)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] -> [batch, num_tokens, hidden]."""
        embeddings: torch.Tensor = self.connector(self.vision_tower(pixels))
        return embeddings

    def at_tokens(self, tokens: int) -> "TinyLlava":
        """The same weights at one of the connector's budgets; raises as `ModelConfig.at_tokens`."""
        other = copy(self)
        other.config = self.config.at_tokens(tokens)
        other._modules = {**self._modules, "connector": copy(self.connector)}
        other.connector.budgets = (tokens,)  # type: ignore[assignment]
        return other

    def splice(self, ids: Sequence[int], pictures: torch.Tensor) -> torch.Tensor:
        """Put the rows of pictures [n, tokens, hidden] in the place of each -200: [positions, hidden].

        Raises:
            PromptError: the number of placeholders is not the number of pictures.
        """
        tokens = torch.tensor(ids, dtype=torch.long, device=pictures.device)
        places: list[int] = (tokens == IMAGE_TOKEN_ID).nonzero().flatten().tolist()
        if len(places) != len(pictures):
            raise PromptError(f"{len(places)} picture placeholders, but {len(pictures)} pictures.")
        text = self.language_model.get_input_embeddings()(tokens.clamp(min=0))  # type: ignore[operator]
        rows: list[torch.Tensor] = []
        start = 0
        for place, picture in zip(places, pictures, strict=True):
            rows += [text[start:place], picture]
            start = place + 1
        return torch.cat([*rows, text[start:]])

    @torch.no_grad()
    def logits(self, ids: Sequence[int], pixels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [positions, vocab] of a prompt with its pictures' pixels [n, 3, h, w]."""
        hidden = self.config.language.hidden_size
        pictures = torch.zeros(0, 0, hidden) if pixels is None or not len(pixels) else self.encode(pixels)
        rows = self.splice(ids, pictures)
        output: torch.Tensor = self.language_model(inputs_embeds=rows[None]).logits[0]
        return output


def build_model(config: ModelConfig) -> TinyLlava:
    """Build a model with random weights; seed torch first for a repeatable one."""
    return TinyLlava(config).float().eval()


def load_model(checkpoint: Checkpoint) -> TinyLlava:
    """Load a checkpoint in float32, strictly.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or not finite; the message names it.
    """
    tensors = checked_tensors(checkpoint)
    model = build_model(checkpoint.config)
    parameters = dict(canonical_parameters(model))
    for name, tensor in tensors:
        with torch.no_grad():
            parameters[name].copy_(tensor)
    return model


def checked_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of the model as a checkpoint stores it, by canonical name, once each, in file order.

    What the headers tell is checked before this returns, the values on the way.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or not finite; the message names it.
    """
    with torch.device("meta"):
        model = TinyLlava(checkpoint.config)
    expected = {name: tuple(value.shape) for name, value in canonical_parameters(model)}
    if checkpoint.layout not in (LORA, ADAPTER):  # merging, to know the shapes, takes time
        facts = tensor_facts(checkpoint)
        _check_shapes(checkpoint, {name: shape for name, (shape, _) in facts.items()}, expected)
    tied = checkpoint.config.language.tie_word_embeddings
    language: Any = model.language_model
    embedding = language.get_input_embeddings().weight
    pair = {_HEAD, *(name for name, value in canonical_parameters(model) if value is embedding)}
    return _checked_values(checkpoint, expected, pair if tied else set())


def _checked_values(
    checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]], tied: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """`tied`: names of what the model has once; a file may hold both if they are equal."""
    found: dict[str, tuple[int, ...]] = {}
    same: dict[str, torch.Tensor] = {}
    for name, tensor in iter_tensors(checkpoint):
        if name in found:
            raise CheckpointError(
                f"{checkpoint.file_of(name)}: tensor {checkpoint.stored_name(name)!r} is there twice."
            )
        found[name] = tuple(tensor.shape)
        if name in tied:
            same[name] = tensor
            _check_equal(checkpoint, same)
        if found[name] == expected.get(name):
            _check_values(checkpoint, name, tensor)
            yield name, tensor
        elif name.endswith(BUFFERS):
            check_buffer(checkpoint, name, tensor)
    _check_shapes(checkpoint, found, expected)
    check_second_copies(checkpoint)


def _check_equal(checkpoint: Checkpoint, same: dict[str, torch.Tensor]) -> None:
    """Which of two was trained, nobody can see: docs/sources/tinyllava.md#a-head-beside-a-tied-embedding."""
    first, *others = same.values()
    if others and not torch.equal(first, others[0]):
        key = "tie_word_embeddings" if checkpoint.line else "text_config.tie_word_embeddings"
        key = "lm_tie_weights" if checkpoint.layout == NANOVLM else key
        keep = ""
        if checkpoint.config.language.family.only.get("tie_word_embeddings") is not True:
            keep = f"Write false in {key} to keep the head, as transformers 5 does, or r"
        names = " and ".join(repr(checkpoint.stored_name(name)) for name in same)
        raise CheckpointError(
            f"{checkpoint.config_path}: {key}, but in {checkpoint.file_of(_HEAD)} {names} differ. "
            f"{keep or 'R'}emove the head from the file, which TinyLLaVA Factory's loader drops in silence."
        )


def _check_shapes(
    checkpoint: Checkpoint, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    for name, shape in found.items():
        where = checkpoint.file_of(name)
        if name not in expected and not _is_harmless(name, checkpoint.config):
            raise CheckpointError(
                f"{where}: tensor {checkpoint.stored_name(name)!r} is left over: the model that "
                f"{checkpoint.config_path} describes has no such part. Is it of another model?"
            )
        if shape != expected.get(name, shape):
            raise CheckpointError(
                f"{where}: tensor {checkpoint.stored_name(name)!r} has shape {list(shape)}, "
                f"{checkpoint.config_path} asks for {list(expected[name])}{_size_key(name, checkpoint)}."
                f"{_UNGATHERED if 0 in shape else ''}"
            )
    missing = expected.keys() - found.keys()
    if missing:
        names = sorted({checkpoint.stored_name(name) for name in missing})
        raise CheckpointError(
            f"{checkpoint.file_of(min(missing))}: {len(names)} tensors are missing, the first is "
            f"{names[0]!r}."
        )


def _size_key(name: str, checkpoint: Checkpoint) -> str:
    """Which keys of config.json the shape of a tensor comes from, of those that are often wrong."""
    if checkpoint.layout == NANOVLM:
        return next((f" ({keys})" for part, keys in _NANOVLM_KEYS.items() if part in name), "")
    if name.endswith(("position_embedding.weight", "position_embeddings")):
        owner = f"{checkpoint.config.vision.name_or_path}'s " if checkpoint.line else "vision_config."
        return f" ({owner}image_size and patch_size)"
    if name.startswith("connector.") and checkpoint.line:
        return " (mm_projector_type, mm_hidden_size and hidden_size)"
    if name.startswith("connector."):
        return " (connector_type, vision_config.hidden_size and text_config.hidden_size)"
    return ""


def _check_values(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> None:
    where = f"{checkpoint.file_of(name)}: tensor {checkpoint.stored_name(name)!r}"
    if tensor.dtype == torch.int8:
        raise UnsupportedModelError(f"{where} is {EIGHT_BITS}")
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(f"{where} is {tensor.dtype}, expected floating point of 16 bits or more.")
    lowest, highest = tensor.aminmax()  # takes no memory, and NaN goes through it
    if not (lowest.float().isfinite() and highest.float().isfinite()):  # of float64, float32 has not all
        raise CheckpointError(f"{where} holds NaN or infinity (in float32): the file is damaged.")


def upstream_state_dict(model: TinyLlava) -> dict[str, torch.Tensor]:
    """Every parameter under the flat names that TinyLLaVA Factory saves and loads, a tied head once."""
    to_upstream = {ours: theirs for theirs, ours in UPSTREAM_PREFIXES.items()}
    state = {}
    for name, parameter in canonical_parameters(model):
        part = name.split(".", 1)[0] + "."
        state[to_upstream[part] + name[len(part) :]] = parameter.detach()
    return state


def canonical_parameters(model: TinyLlava) -> list[tuple[str, nn.Parameter]]:
    """Parameters by canonical name. named_parameters() lists a tied head once, as upstream's files do."""
    items = [(f"vision_tower.{name}", value) for name, value in model.vision_tower.upstream_items()]
    for part in ("connector", "language_model"):
        items += [(f"{part}.{name}", value) for name, value in getattr(model, part).named_parameters()]
    return items


def _is_harmless(name: str, config: ModelConfig) -> bool:
    """Tensors that a file may hold although the model has no such parameter."""
    tied_head = config.language.tie_word_embeddings and name == _HEAD
    return tied_head or name.endswith(BUFFERS)
