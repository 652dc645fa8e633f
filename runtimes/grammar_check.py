"""A grammar or a JSON schema, read in a process of its own: llama.cpp may end the process that it parses in.

A hostile text can also take for ever, or all memory: time, memory and the grammar's length are bounded here.
"""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyllava_edge.errors import GrammarError
from tinyllava_edge.module_process import module_command

MAX_CHARACTERS = (
    200_000  # of a grammar: one of 64 rules, or a schema's of a hundred properties, has a few thousand
)
_SECONDS, _BYTES = 20, 2 << 30
_PARSER = "parse: error parsing grammar: "  # on its standard error, and not in its log


def check_grammar(gguf: Path, wanted: dict[str, Any], stop_ids: tuple[int, ...]) -> str:
    """The text, in GBNF, that llama.cpp parses for the vocabulary of a file.

    Args:
        gguf: the file.
        wanted: "grammar", or "json_schema", and its text.
        stop_ids: of the bundle.

    Raises:
        GrammarError: it cannot be read, or not within the bounds; with llama.cpp's own words.
    """
    kind, [text] = next(iter(wanted)).replace("json_s", "JSON s"), wanted.values()
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"the {kind} has {len(text):,} characters; {MAX_CHARACTERS:,} at most.")
    request = json.dumps({**wanted, "gguf": str(gguf), "stop_ids": stop_ids})
    command = module_command(__spec__.name)
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise GrammarError(f"the {kind} took over {_SECONDS} s to read. Give a simpler one.") from None
    words = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode == 2 and words:
        *before, last = words
        found = next((line.removeprefix(_PARSER) for line in before if line.startswith(_PARSER)), "")
        raise GrammarError(f"llama.cpp cannot read the {kind}: {found:.300}." if found else last)
    if done.returncode:
        said = words[0] if words else f"code {done.returncode}"
        raise GrammarError(
            f"the {kind} cannot be read: llama.cpp dies of it ({said:.200}). Give a simpler one."
        )
    return done.stdout.decode()


def _main() -> None:
    with suppress(ImportError):  # Windows has no such bounds, and the time alone
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    request = json.loads(sys.stdin.buffer.read())
    try:
        text = request["grammar"] if "grammar" in request else _converted(request["json_schema"])
        _parse(text, Path(request["gguf"]), request["stop_ids"])
    except GrammarError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        sys.exit(2)
    sys.stdout.buffer.write(text.encode())


def _converted(schema: str) -> str:
    from .json_schema import read_schema
    from .llamacpp_library import load_library

    library = load_library().bindings.llama_grammar

    class Converter(library.SchemaConverter):  # type: ignore[misc,name-defined]  # they are loaded late
        def _format_literal(self, literal: str) -> str:
            """A value's JSON as a literal; the converter's own lets a backslash through."""
            plain = json.dumps(json.loads(literal), ensure_ascii=False, allow_nan=False)
            return '"' + re.sub(r'["\\]', r"\\\g<0>", plain) + '"'

    try:
        read = read_schema(json.loads(schema))
        converter = Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        converter.visit(converter.resolve_refs(read, ""), "")
        text: str = converter.format_grammar()
        text.encode()  # half of a surrogate pair
    except json.JSONDecodeError as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}.") from None
    except GrammarError:
        raise
    except (Exception, RecursionError) as error:
        raise GrammarError(f"the JSON schema cannot be converted: {error}.") from None
    # Its characters of a string have the control characters too, which are none of JSON's.
    return text.replace('char ::= [^"\\\\]', 'char ::= [^"\\\\\\x00-\\x1F]')


def _parse(text: str, gguf: Path, stop_ids: list[int]) -> None:
    """Parse it, and look at the whole vocabulary once: what a grammar costs at each token shows here."""
    import numpy as np

    from .llamacpp_grammar import ANSWER, LlamaCppGrammar, LlamaCppVocabulary

    if "\0" in text or not text.strip():
        raise GrammarError("the grammar is empty, or has a zero byte.")
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(
            f"the JSON schema becomes {len(text):,} characters of grammar; {MAX_CHARACTERS:,} at most."
        )
    vocabulary = LlamaCppVocabulary(gguf, (), stop_ids)
    for root in (ANSWER, "root"):
        LlamaCppGrammar(vocabulary, text, root).mask(np.zeros(vocabulary.size, np.float32))


if __name__ == "__main__":
    _main()
