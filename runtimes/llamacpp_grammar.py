"""llama.cpp's grammar sampler on logits of any backend: it needs a GGUF file's vocabulary, and no weights.

llama.cpp ends the process where a token is accepted that its grammar does not allow, and may where its parser
meets what it did not expect: only what `allows` said yes to is accepted, and a text is parsed here only after
another process has parsed it (`grammar_check.py`).
"""

import ctypes
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import GrammarError

from .access import freed_with
from .llamacpp_library import Library, load_library

_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class LlamaCppVocabulary:
    """The vocabulary of a GGUF file that `check_gguf` has passed, and which of its tokens end an answer.

    Args:
        path: the file.
        special_ids: of tokens that an answer's text does not show; a grammar has no use for them.
        stop_ids: of tokens that end an answer.

    Raises:
        GrammarError: llama.cpp cannot read it, or knows none of the stop ids as an end.
    """

    def __init__(self, path: Path, special_ids: Collection[int], stop_ids: Collection[int]) -> None:
        loaded: Library = load_library()
        self.library = library = loaded.bindings
        parameters = library.llama_model_default_params()
        parameters.vocab_only, parameters.use_mmap = True, False
        model = library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise GrammarError(f"{path}: llama.cpp cannot read its vocabulary.{loaded.log.said()}")
        freed_with(self, model, library.llama_model_free)
        self.pointer = library.llama_model_get_vocab(model)
        self.size = int(library.llama_vocab_n_tokens(self.pointer))
        self.stop_ids = frozenset(stop_ids)
        self._never = frozenset(special_ids) - self.stop_ids
        self.end_id = next(filter(self._ends, sorted(self.stop_ids)), None)
        if self.end_id is None:
            raise GrammarError(
                f"{path}: llama.cpp knows none of the ids {sorted(stop_ids)} as the end of an answer."
            )

    def is_never(self, token: int) -> bool:
        """Whether no grammar lets it through: special ones, ends that are not ours, rows without a token."""
        return (
            token in self._never or token >= self.size or (token not in self.stop_ids and self._ends(token))
        )

    def never(self, size: int) -> Iterable[int]:
        """Those of `is_never` up to `size`, but for ends, of which llama.cpp says what it does of `end_id`."""
        return (*(token for token in self._never if token < size), *range(self.size, size))

    def _ends(self, token: int) -> bool:
        return 0 <= token < self.size and bool(self.library.llama_vocab_is_eog(self.pointer, token))


class LlamaCppGrammar:
    """A `sampling.Constraint`: one answer's place in a grammar.

    Raises:
        GrammarError: llama.cpp does not take the text.
    """

    def __init__(self, vocabulary: LlamaCppVocabulary, gbnf: str) -> None:
        self._vocabulary, self._library = vocabulary, vocabulary.library
        sampler = self._library.llama_sampler_init_grammar(vocabulary.pointer, gbnf.encode(), b"root")
        if not sampler:
            raise GrammarError("llama.cpp cannot read the grammar.")
        self._sampler = sampler
        freed_with(self, sampler, self._library.llama_sampler_free)
        self._one = np.zeros(1, _TOKEN)

    def allows(self, token: int) -> bool:
        """See `Constraint`."""
        if self._vocabulary.is_never(token):
            return False
        self._one["id"] = self._vocabulary.end_id if token in self._vocabulary.stop_ids else token
        self._one["logit"] = 0
        self._apply(self._one)
        return bool(np.isfinite(self._one["logit"][0]))

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """See `Constraint`; a GrammarError where no token of the vocabulary goes on."""
        vocabulary, count = self._vocabulary, min(logits.size, self._vocabulary.size)
        tokens = np.zeros(count, _TOKEN)
        tokens["id"] = np.arange(count)
        self._apply(tokens)
        may_end = self.allows(vocabulary.end_id)  # type: ignore[arg-type]  # it has one
        refused = np.ones(logits.size, bool)
        refused[tokens["id"]] = ~np.isfinite(tokens["logit"])
        refused[[*vocabulary.never(logits.size)]] = True
        ends = (
            [token for token in np.flatnonzero(~refused) if vocabulary.is_never(int(token))]
            if may_end
            else []
        )
        refused[ends] = True
        refused[sorted(vocabulary.stop_ids)] = not may_end
        logits[refused] = -np.inf
        if not np.isfinite(logits.max()):
            raise GrammarError("the grammar wants text that no token of this vocabulary goes on with.")

    def accept(self, token: int) -> None:
        """See `Constraint`."""
        if token not in self._vocabulary.stop_ids:
            self._library.llama_sampler_accept(self._sampler, token)

    def _apply(self, tokens: npt.NDArray[Any]) -> None:
        data = ctypes.cast(tokens.ctypes.data, self._library.llama_token_data_p)
        array = self._library.llama_token_data_array(data, tokens.size, -1, False)
        self._library.llama_sampler_apply(self._sampler, ctypes.byref(array))
