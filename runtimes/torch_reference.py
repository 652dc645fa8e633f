"""Both halves computed by the torch reference model, in float32: the measure of every other runtime.

Computes from the checkpoint, not from the bundle's graphs, so it needs the checkpoint the bundle came from.
The one module here that imports torch, and only when it is opened.
"""

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BackendError, UsageError

from .base import BackendOptions, Segment, check_open, check_pixels, check_segment
from .threads import thread_budget

if TYPE_CHECKING:
    from tinyllava_edge.model.vlm import TinyLlava

NAME = "torch float32"
# So that both halves of a runtime share one model, while one of them is open.
_open_models: "weakref.WeakValueDictionary[Checkpoint, TinyLlava]" = weakref.WeakValueDictionary()


def open_vision(bundle: Bundle, options: BackendOptions) -> "TorchVision":
    """Open tower and connector.

    Raises:
        BackendError: the checkpoint is not there, or is not the one the bundle came from.
        UsageError: a variant was asked for, which are other programs' files, or another KV type than f32.
    """
    return TorchVision(_load_model(bundle, options), bundle.manifest.vision.image_size)


def open_language(bundle: Bundle, options: BackendOptions) -> "TorchLanguage":
    """Open the language model; raises as `open_vision` does. The KV cache is float32."""
    return TorchLanguage(_load_model(bundle, options), options.positions(bundle.manifest.language))


class TorchVision:
    """Vision tower and connector of a reference model."""

    def __init__(self, model: "TinyLlava", image_size: int) -> None:
        import torch

        budgets = model.config.connector.budgets
        self.name = f"{NAME}, {budgets[0]} visual tokens" if budgets else NAME
        self._torch = torch
        self._image_size = image_size
        self._model: Any = model

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `VisionBackend`."""
        check_open(self.name, self._model is not None)
        check_pixels(self.name, pixels, self._image_size)
        with self._torch.inference_mode():
            embeddings: npt.NDArray[np.float32] = self._model.encode(self._torch.from_numpy(pixels)).numpy()
        return embeddings

    def close(self) -> None:
        """See `VisionBackend`."""
        self._model = None


class TorchLanguage:
    """Language model of a reference model, with transformers' growing cache."""

    def __init__(self, model: "TinyLlava", context_length: int) -> None:
        import torch
        from transformers import DynamicCache

        self.name = NAME
        self.vocab_size = model.config.language.vocab_size
        self.hidden_size = model.config.language.hidden_size
        self.context_length = context_length
        self._torch = torch
        self._new_cache = DynamicCache
        self._cache: Any = DynamicCache()
        self._position = 0
        self._last: npt.NDArray[np.float32] | None = None
        self._model: Any = model.language_model

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """See `LanguageBackend`."""
        check_open(self.name, self._model is not None)
        check_segment(self, segment, position, self._position)
        from tinyllava_edge.model.language_model import continued_logits

        self._last = None
        with self._torch.inference_mode():
            rows = self._torch.from_numpy(segment)
            if segment.ndim == 1:
                rows = self._model.get_input_embeddings()(rows)
            found = continued_logits(self._model, rows[None], self._cache)
            logits: npt.NDArray[np.float32] = found[0].numpy()
        self._position += len(segment)
        self._last = logits[-1]
        return logits if all_logits else None

    def last_logits(self) -> npt.NDArray[np.float32]:
        """See `LanguageBackend`."""
        check_open(self.name, self._model is not None)
        if self._last is None:
            raise BackendError(f"{self.name}: nothing was evaluated, so there are no logits.")
        return self._last.copy()

    def truncate(self, position: int) -> None:
        """See `LanguageBackend`."""
        check_open(self.name, self._model is not None)
        if position == 0:
            self._cache = self._new_cache()
        elif position < self._position:
            self._cache.crop(position - self._position)  # negative: how many to remove
        else:
            return
        self._position = position
        self._last = None

    def close(self) -> None:
        """See `LanguageBackend`."""
        self._model = self._cache = None


def _load_model(bundle: Bundle, options: BackendOptions) -> "TinyLlava":
    """Load the checkpoint the bundle came from, once for both halves."""
    if (name := options.vision or options.language) is not None:
        raise UsageError(
            f"runtime torch computes from the checkpoint in float32, so it has no variant {name!r}. "
            "Leave --vision and --language out."
        )
    options.check_without_llamacpp("torch")
    source = bundle.manifest.source
    path = options.checkpoint or checkpoint_path(source.name)
    if not path.is_dir():
        raise BackendError(
            f"runtime torch needs the checkpoint the bundle came from, and {path} is not there. "
            "Give its directory with --checkpoint."
        )
    import torch  # seconds, so only now

    from tinyllava_edge.model.vlm import load_model

    torch.set_num_threads(thread_budget(options.threads))
    checkpoint = Checkpoint(
        path,
        sources=options.sources,
        template=bundle.manifest.prompt.template.name,
        allow_pickle=options.allow_pickle,
    )
    if checkpoint.config.connector.budgets:
        checkpoint = replace(checkpoint, tokens=bundle.manifest.vision.num_tokens)
    if checkpoint.sha256 != source.checkpoint_sha256:
        raise BackendError(
            f"{path} is not the checkpoint that {bundle.root} came from, whose sha256 is "
            f"{source.checkpoint_sha256[:12]}... Give that one with --checkpoint, or export again."
        )
    model = _open_models.get(checkpoint)
    if model is None:
        model = _open_models[checkpoint] = load_model(checkpoint)
    return model
