"""A runtime without weights: it answers every question with one text, through the real protocols.

For tests, documentation, and to see what `Model` itself costs. Its logits follow from everything in the
context, so a wrong splice, a lost position or a stale context shows, as it would with a real model.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.errors import BackendError
from tinyllava_edge.prompt import TextTokenizer

from .base import BackendOptions, Segment, check_open, check_pixels, check_segment

DEFAULT_ANSWER = "This is a scripted answer."


def open_vision(bundle: Bundle, options: BackendOptions) -> "ScriptedVision":
    """Open the vision half; a variant has no effect, but the bundle must have it."""
    if options.vision is not None:
        bundle.variant("vision", options.vision)
    spec = bundle.manifest.vision
    return ScriptedVision(spec.image_size, spec.num_tokens, spec.hidden_size)


def open_language(bundle: Bundle, options: BackendOptions) -> "ScriptedLanguage":
    """Open the language half; of the options only `context_length` has an effect."""
    options.check_without_llamacpp("scripted")
    if options.language is not None:
        bundle.variant("language", options.language)
    manifest = bundle.manifest
    tokenizer = TextTokenizer(bundle.read_text(TOKENIZER_FILE), bos_id=None, checked=True)
    return ScriptedLanguage(
        tokenizer.encode_text(DEFAULT_ANSWER),
        stop_id=manifest.prompt.stop_ids[0],
        vocab_size=manifest.language.vocab_size,
        hidden_size=manifest.language.hidden_size,
        context_length=options.positions(manifest.language),
    )


class ScriptedVision:
    """Rows that depend on the pixels: row t holds the mean of every num_tokens-th pixel from t on."""

    def __init__(self, image_size: int, num_tokens: int, hidden_size: int) -> None:
        self.name = "scripted"
        self._image_size = image_size
        self._num_tokens = num_tokens
        self._hidden_size = hidden_size
        self._is_open = True

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `VisionBackend`."""
        check_open(self.name, self._is_open)
        check_pixels(self.name, pixels, self._image_size)
        flat = pixels.reshape(len(pixels), -1)
        means = [flat[:, token :: self._num_tokens].mean(axis=1) for token in range(self._num_tokens)]
        scale = np.linspace(1, 2, self._hidden_size, dtype=np.float32)
        return np.stack(means, axis=1)[:, :, None] * scale  # [batch, tokens, hidden]

    def close(self) -> None:
        """See `VisionBackend`."""
        self._is_open = False


class ScriptedLanguage:
    """Logits that spell a script, one token after another, and then stop.

    The next token follows from how much of the script the context ends with, so it does not matter how the
    context was evaluated; a prompt must not end with the script's beginning. The second most likely token
    follows from a checksum over the whole context.

    Args:
        script: ids of the answer.
        stop_id: id after the answer.
        vocab_size: columns of the logits.
        hidden_size: columns of an embedding.
        context_length: positions at most.
    """

    def __init__(
        self, script: Sequence[int], *, stop_id: int, vocab_size: int, hidden_size: int, context_length: int
    ) -> None:
        self.name = "scripted"
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.context_length = context_length
        self._script = [*script, stop_id]
        self._states: list[tuple[int, int]] = []  # of each position: script tokens matched, checksum
        self._has_logits = False
        self._is_open = True

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """See `LanguageBackend`."""
        check_open(self.name, self._is_open)
        check_segment(self, segment, position, len(self._states))
        for row in segment:
            matched, checksum = self._states[-1] if self._states else (0, 0)
            is_id = segment.ndim == 1
            matched = self._advance(matched, int(row)) if is_id else 0
            self._states.append((matched, zlib.crc32(row.tobytes(), checksum)))
        self._has_logits = True
        if not all_logits:
            return None
        return np.stack([self._logits(state) for state in self._states[position:]])

    def last_logits(self) -> npt.NDArray[np.float32]:
        """See `LanguageBackend`."""
        check_open(self.name, self._is_open)
        if not self._has_logits:
            raise BackendError(f"{self.name}: nothing was evaluated, so there are no logits.")
        return self._logits(self._states[-1])

    def truncate(self, position: int) -> None:
        """See `LanguageBackend`."""
        check_open(self.name, self._is_open)
        if position < len(self._states):
            del self._states[position:]
            self._has_logits = False

    def close(self) -> None:
        """See `LanguageBackend`."""
        self._is_open = False

    def _advance(self, matched: int, token: int) -> int:
        """Longest beginning of the script that the context ends with, now that `token` was added."""
        recent = [*self._script[:matched], token]
        for length in range(min(len(recent), len(self._script) - 1), 0, -1):
            if recent[-length:] == self._script[:length]:
                return length
        return 0

    def _logits(self, state: tuple[int, int]) -> npt.NDArray[np.float32]:
        matched, checksum = state
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[checksum % self.vocab_size] = 1
        logits[self._script[matched]] = 2
        return logits
