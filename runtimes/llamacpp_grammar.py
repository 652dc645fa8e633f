"""llama.cpp's grammar sampler on logits of any backend: it needs a GGUF file's vocabulary, and no weights.

llama.cpp ends the process where a token is accepted that its grammar does not allow, and may where its parser
meets what it did not expect: only what `allows` said yes to is accepted, and a text is parsed here only after
another process has parsed it (`grammar_check.py`).
"""

import ctypes
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import GrammarError

from .access import freed_with
from .llamacpp_library import Library, load_library

_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data

# Models answer with a space first where their template has one, which the answer's text drops; without it
# they would have to spell their first word in pieces that they never saw.
ANSWER = "tinyllava-answer"


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
        self.log = loaded.log
        parameters = library.llama_model_default_params()
        parameters.vocab_only, parameters.use_mmap = True, False
        model = library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise GrammarError(f"{path}: llama.cpp cannot read its vocabulary.{loaded.log.said()}")
        freed_with(self, model, library.llama_model_free)
        self.pointer = library.llama_model_get_vocab(model)
        self.size = int(library.llama_vocab_n_tokens(self.pointer))
        self.stop_ids = frozenset(stop_ids)
        ends = {token for token in range(self.size) if library.llama_vocab_is_eog(self.pointer, token)}
        if not ends & self.stop_ids:
            raise GrammarError(
                f"{path}: llama.cpp knows none of the ids {sorted(stop_ids)} as an end, so no grammar "
                "can end. Leave the grammar or schema out."
            )
        self.end_id = min(ends & self.stop_ids)
        self.never = frozenset((*ends, *special_ids)) - self.stop_ids


class LlamaCppGrammar:
    """A `sampling.Constraint`: one answer's place in a grammar, which is GBNF that was checked.

    Raises:
        GrammarError: llama.cpp does not take the text.
    """

    def __init__(self, vocabulary: LlamaCppVocabulary, gbnf: str, root: str = ANSWER) -> None:
        self._vocabulary, self._library = vocabulary, vocabulary.library
        text = f'{gbnf}\n{ANSWER} ::= " "? root\n'.encode()
        sampler = self._library.llama_sampler_init_grammar(vocabulary.pointer, text, root.encode())
        if not sampler:
            raise GrammarError(f"llama.cpp cannot read the grammar.{vocabulary.log.said()}")
        self._sampler = sampler
        freed_with(self, sampler, self._library.llama_sampler_free)
        self._one = np.zeros(1, _TOKEN)

    def allows(self, token: int) -> bool:
        """See `Constraint`."""
        vocabulary = self._vocabulary
        if token in vocabulary.never or token >= vocabulary.size:
            return False
        self._one["id"] = vocabulary.end_id if token in vocabulary.stop_ids else token
        self._one["logit"] = 0
        self._apply(self._one)
        return bool(np.isfinite(self._one["logit"][0]))

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """See `Constraint`; a GrammarError where no token of the vocabulary goes on."""
        vocabulary = self._vocabulary
        tokens = np.zeros(min(logits.size, vocabulary.size), _TOKEN)
        tokens["id"] = np.arange(tokens.size)
        self._apply(tokens)
        allowed = np.zeros(logits.size, bool)  # a row without a token is not
        allowed[: tokens.size] = np.isfinite(tokens["logit"])
        allowed[[*vocabulary.stop_ids]] = allowed[vocabulary.end_id]
        allowed[[token for token in vocabulary.never if token < logits.size]] = False
        logits[~allowed] = -np.inf
        if not allowed.any():
            raise GrammarError(
                "the grammar wants text that no token of this vocabulary goes on with. Give another one."
            )

    def accept(self, token: int) -> None:
        """See `Constraint`."""
        if token not in self._vocabulary.stop_ids:
            self._library.llama_sampler_accept(self._sampler, token)

    def _apply(self, tokens: npt.NDArray[Any]) -> None:
        data = ctypes.cast(tokens.ctypes.data, self._library.llama_token_data_p)
        array = self._library.llama_token_data_array(data, tokens.size, -1, False)
        self._library.llama_sampler_apply(self._sampler, ctypes.byref(array))
