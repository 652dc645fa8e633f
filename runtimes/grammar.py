"""What an answer must be: a JSON schema or a grammar -> a constraint of its tokens."""

import json
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import GrammarError, MissingExtraError
from tinyllava_edge.sampling import Constraint

from .registry import LANGUAGE_BACKENDS

if TYPE_CHECKING:
    from .llamacpp_grammar import LlamaCppVocabulary

_KEPT = 32  # texts that were checked


class Grammars:
    """The grammars of one model; llama.cpp and the vocabulary are loaded when the first one is wanted.

    Args:
        bundle: has the vocabulary, in a GGUF file.
        special_ids: of tokens that an answer's text does not show.
        stop_ids: of tokens that end an answer.
    """

    def __init__(self, bundle: Bundle, special_ids: Collection[int], stop_ids: Collection[int]) -> None:
        self._bundle, self._special_ids, self._stop_ids = bundle, special_ids, tuple(stop_ids)
        self._vocabulary: LlamaCppVocabulary | None = None
        self._checked: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()  # several models may share them

    def start(self, json_schema: dict[str, Any] | str | None, grammar: str | None) -> Constraint | None:
        """The constraint of a new answer; None where nothing is wanted of it.

        Raises:
            GrammarError: both are given, one cannot be read, or the bundle has no vocabulary for it.
            MissingExtraError: llama.cpp is not installed.
        """
        if json_schema is None and grammar is None:
            return None
        if json_schema is not None and grammar is not None:
            raise GrammarError("a JSON schema and a grammar are given. Give one of them.")
        if not LANGUAGE_BACKENDS["llamacpp"].is_installed:
            line = LANGUAGE_BACKENDS["llamacpp"].install_line
            raise MissingExtraError(f"grammars and JSON schemas need the package llama_cpp: {line}")
        from .grammar_check import check_grammar
        from .llamacpp_grammar import LlamaCppGrammar, LlamaCppVocabulary

        wanted = ("grammar", _text(grammar)) if json_schema is None else ("json_schema", _text(json_schema))
        gguf = [variant.files[0] for variant in self._bundle.manifest.variants if variant.target == "gguf"]
        if not gguf:
            raise GrammarError(
                f"{self._bundle.root}: a grammar needs a GGUF variant, whose vocabulary llama.cpp reads. "
                "Export one, or leave the grammar or schema out."
            )
        path = self._bundle.path(gguf[0])
        with self._lock:
            if wanted not in self._checked:
                checked = check_grammar(path, dict([wanted]), self._stop_ids)
                if len(self._checked) >= _KEPT:
                    del self._checked[next(iter(self._checked))]
                self._checked[wanted] = checked
            if self._vocabulary is None:
                self._vocabulary = LlamaCppVocabulary(path, self._special_ids, self._stop_ids)
            return LlamaCppGrammar(self._vocabulary, self._checked[wanted])


def _text(wanted: dict[str, Any] | str | None) -> str:
    """As text; what of it is no JSON or no Unicode is a GrammarError."""
    if not isinstance(wanted, str | dict):
        raise GrammarError(f"a grammar must be text and a schema an object, found {type(wanted).__name__}.")
    try:
        text = wanted if isinstance(wanted, str) else json.dumps(wanted)
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError("the grammar holds a character that is not valid Unicode.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not JSON ({error}).") from None
    return text
