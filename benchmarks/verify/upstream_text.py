"""Prompts and token ids as upstream makes them, written again so that `prompt.py` is not its own judge.

Sources: docs/sources/tinyllava.md#prompt-templates, docs/sources/tinyllava.md#token-ids and, for LLaVA's
code line, docs/sources/llava_line.md#prompts.
SentencePiece vocabularies are read by the sentencepiece library itself, the way transformers' slow
LlamaTokenizer (`legacy=False`) does it; byte-level BPE by transformers.
Checked against the golden ids of the original code in tests/benchmarks/verify/test_upstream_text.py.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.work_places import temporary_place

Turn = tuple[str, str | None]
IMAGE = "<image>"
IMAGE_ID = -200
_SPACE = "\u2581"  # SentencePiece writes a space so
_BPE_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
# End of an answer, per template (docs/sources/tinyllava.md#prompt-templates).
ENDS = {
    "phi": "<|endoftext|>",
    "llama": "</s>",
    "gemma": "<eos>",
    "qwen2_base": "<|endoftext|>",
    "qwen2_instruct": "<|im_end|>",
    "llama3": "<|end_of_text|>",
    "llama3_instruct": "<|eot_id|>",
}
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
_CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")


@dataclass(frozen=True)
class _Conversation:
    """One of LLaVA's: its style, system text, roles and separators."""

    style: str
    system: str
    roles: tuple[str, str]
    sep: str
    sep2: str = ""

    @property
    def end(self) -> str:
        """What ends an answer, a line feed behind a token aside."""
        return (self.sep2 or self.sep).rstrip("\n") or self.sep


_LLAVA = {
    "v1": _Conversation("two", _SYSTEM, ("USER", "ASSISTANT"), " ", "</s>"),
    "llava_v1": _Conversation("two", _SYSTEM.replace("user", "human"), ("USER", "ASSISTANT"), " ", "</s>"),
    "bunny": _Conversation("two", _SYSTEM, ("USER", "ASSISTANT"), " ", "<|endoftext|>"),
    "plain": _Conversation("plain", "", ("", ""), "\n"),
    "chatml_direct": _Conversation("mpt", "<|im_start|>system\nAnswer the questions.", _CHATML, "<|im_end|>"),
    "qwen_1_5": _Conversation(
        "chatml",
        "<|im_start|>system\nYou are a helpful assistant.",
        ("<|im_start|>user", "<|im_start|>assistant"),
        "<|im_end|>",
    ),
    "qwen_2": _Conversation(
        "mpt", "<|im_start|>system\nYou are a helpful assistant.", _CHATML, "<|im_end|>\n"
    ),
    "qwen_2_5": _Conversation(
        "chatml",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ("<|im_start|>user", "<|im_start|>assistant"),
        "<|im_end|>",
    ),
    "phi3_instruct": _Conversation(
        "mpt",
        "<|system|>\nYou are a helpful AI assistant.",
        ("\n<|user|>\n", "\n<|assistant|>\n"),
        "<|end|>",
    ),
    "llava_pp_llama3": _Conversation(
        "mpt",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + _SYSTEM,
        (
            "<|start_header_id|>user<|end_header_id|>\n\n",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "<|eot_id|>",
    ),
    "llava_llama_2": _Conversation(
        "llama_2",
        "You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.",
        ("USER", "ASSISTANT"),
        "<s>",
        "</s>",
    ),
}
ENDS |= {name: conversation.end for name, conversation in _LLAVA.items()}
# nanoVLM's chat in TinyLLaVA's layout, as `train --template` writes: docs/sources/nanovlm.md#prompt
ENDS["nanovlm_chat"] = "<|im_end|>"


def upstream_prompt(template: str, turns: Sequence[Turn], *, picture: str = IMAGE) -> str:
    """The prompt of a conversation with at most one picture for each question.

    `picture` is what stands for one where it is not `<image>` alone (`mm_use_im_start_end`).

    Raises:
        CheckpointError: nothing is known of the template.
    """
    if template not in ENDS:
        raise CheckpointError(
            f"template {template!r}: verify has no prompts of others for it to hold ours against. Known: "
            f"{', '.join(ENDS)}. Without --checkpoint, verify takes the bundle's own reference tensors."
        )
    if template == "nanovlm_chat":
        return _nanovlm_prompt(turns, picture)
    messages: list[str | None] = []
    for question, answer in turns:
        if IMAGE in question:  # to the front, whatever the place and number
            text = question.replace(IMAGE, "").strip()
            question = f"{IMAGE}\n{text}" if text else IMAGE
        messages += [question.replace(IMAGE, picture), answer]
    if template in _LLAVA:
        return _llava_prompt(_LLAVA[template], messages)
    prompt = f"{_SYSTEM} "
    for asked, answer in zip(messages[::2], messages[1::2], strict=True):
        prompt += f"USER: {asked} ASSISTANT:"
        if answer is not None:
            prompt += " " + answer + ENDS[template]
    return prompt


def _nanovlm_prompt(turns: Sequence[Turn], picture: str) -> str:
    prompts = []
    for question, answer in turns:
        asked = (picture if IMAGE in question else "") + without_marker(question)
        said = "" if answer is None else f"{answer}<|im_end|>"
        prompts.append(f"{_CHATML[0]}{asked}<|im_end|>\n{_CHATML[1]}{said}")
    return "\n".join(prompts)


def without_marker(question: str) -> str:
    """As nanoVLM has it: a marker in front has a line feed of its own, which is no text."""
    return question.removeprefix(f"{IMAGE}\n").replace(IMAGE, "")


def _llava_prompt(template: _Conversation, messages: Sequence[str | None]) -> str:
    """`Conversation.get_prompt`; an empty message counts as given, which upstream takes for a missing one."""
    line = "\n" if template.style == "chatml" else ""
    seps = [template.sep, template.sep2 or template.sep]
    prompt = template.system + template.sep + line
    if template.style in ("plain", "llama_2"):
        prompt = ""
    for number, message in enumerate(messages):
        role = template.roles[number % 2]
        if template.style == "two":
            prompt += role + (":" if message is None else f": {message}{seps[number % 2]}")
        elif template.style in ("mpt", "chatml"):
            prompt += role + line + ("" if message is None else message + template.sep + line)
        elif message is not None and template.style == "plain":
            prompt += message + seps[number % 2]
        elif message is not None and number % 2:
            prompt += " " + message + " " + template.sep2
        elif message is not None:
            system = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n" if number == 0 else ""
            prompt += ("" if number == 0 else template.sep) + f"[INST] {system}{message} [/INST]"
    return prompt


class UpstreamTokenizer:
    """Token ids of prompts.

    Args:
        directory: where `tokenizer.model`, or else the files of a byte-level BPE, are.

    Attributes:
        pieces: every token's text, by id.
        bos_id: what starts a prompt, or None.
        bos_token_id: the BOS token, also where prompts do not start with it.
        eos_id: the EOS token.
        scores: of the pieces, where it is SentencePiece.
        merges: where it is byte-level BPE.
    """

    def __init__(self, directory: Path) -> None:
        settings_file = directory / "tokenizer_config.json"
        settings = read_json_object(settings_file) if settings_file.exists() else {}
        self.pieces: list[str]
        self._encode: Callable[[str], list[int]]
        if (directory / "tokenizer.model").exists():
            spm = _SentencePiece(directory / "tokenizer.model", settings)
            self._encode, self.pieces = spm.encode, spm.pieces
            self.bos_token_id: int | None = spm.bos_id
            self.bos_id = spm.bos_id if settings.get("add_bos_token", True) else None
            named = settings.get("eos_token")  # Phi-3's is not the vocabulary's own
            named = named.get("content") if isinstance(named, dict) else named
            self.eos_id: int | None = spm.specials.get(str(named), spm.eos_id)
            self._ids = spm.specials
            self.scores: list[float] | None = spm.scores
            self.merges: list[str] | None = None
        else:
            tokenizer = _byte_level_bpe(directory)
            self._encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))
            self.pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
            starts = list(tokenizer.encode("", add_special_tokens=True))
            self.bos_token_id = tokenizer.bos_token_id
            self.bos_id = starts[0] if starts else None
            self.eos_id = tokenizer.eos_token_id
            self._ids = {piece: index for index, piece in enumerate(self.pieces)}
            self.scores, self.merges = None, merges_in(directory)
            if _has_byte_fallback(directory):
                self.scores, self.merges = _scores(self.pieces, self.merges), None

    def prompt(self, template: str, turns: Sequence[Turn], *, picture: str = IMAGE) -> str:
        """As `upstream_prompt`."""
        return upstream_prompt(template, turns, picture=picture)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a prompt, each piece around `<image>` on its own, -200 in the place of each picture."""
        ids = [] if self.bos_id is None else [self.bos_id]
        for index, piece in enumerate(prompt.split(IMAGE)):
            if index:
                ids.append(IMAGE_ID)
            ids += self._encode(piece)
        return ids

    def encode_jointly(self, prompt: str) -> list[int]:
        """What a runtime gets that tokenizes the text after a picture as a continuation: a known mistake."""
        before, _, after = prompt.partition(IMAGE)
        head, whole = self._encode(before), self._encode(before + after)
        start = [] if self.bos_id is None else [self.bos_id]
        return [*start, *head, IMAGE_ID, *whole[len(head) :]]

    def stop_ids(self, template: str, config_eos: Sequence[int]) -> set[int]:
        """Ids that end an answer: the tokenizer's EOS, config.json's, and the template's end string."""
        end = ENDS[template]
        found = {self.eos_id, *config_eos, self._ids.get(end)}
        if end == "\n":  # of `plain`; no special token, but what a line feed is behind a text
            found.add(self._encode(f"caption{end}")[-1])
        return {token for token in found if token is not None}


class _SentencePiece:
    """transformers' slow LlamaTokenizer with `legacy=False`, or GemmaTokenizer, over sentencepiece."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated, untyped
        proto.ParseFromString(path.read_bytes())
        proto.normalizer_spec.add_dummy_prefix = False  # a space is put before the text by hand, once
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.pieces = [self._model.IdToPiece(i) for i in range(self._model.GetPieceSize())]
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()
        # Gemma's class puts no space before a text.
        self._start = "" if str(settings.get("tokenizer_class", "")).startswith("Gemma") else _SPACE
        self._unknown = self._model.IdToPiece(self._model.unk_id())
        self._unknown_length = len(self._model.EncodeAsIds(self._unknown))
        control = range(self._model.GetPieceSize())
        self.specials = {
            self.pieces[i]: i for i in control if self._model.IsControl(i) or self._model.IsUnknown(i)
        }
        for text, index in sorted(_added(path.parent, settings).items(), key=lambda item: item[1]):
            self.specials[text] = index
            self.pieces += [text] if index == len(self.pieces) else []
        scores = [float(self._model.GetScore(index)) for index in control]
        self.scores = scores + [0.0] * (len(self.pieces) - len(scores))
        tokens = settings.get("added_tokens_decoder", {}).values()
        self._strips_behind, self._strips_before = (
            {token["content"] for token in tokens if token.get(side)} for side in ("rstrip", "lstrip")
        )
        self._split = re.compile("(" + "|".join(re.escape(s) for s in self.specials) + ")")

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = []
        parts = self._split.split(self._start + text.replace(_SPACE, " "))
        for number, part in enumerate(parts):
            if number and parts[number - 1] in self._strips_behind:  # Phi-3's, as its own class does
                part = part.lstrip()
            if "".join(parts[number + 1 : number + 2]) in self._strips_before:
                part = part.rstrip()
            if part in self.specials:
                ids.append(self.specials[part])
            elif part.startswith((_SPACE, " ")):
                # The library strips leading spaces; an unknown token in front keeps them.
                ids += self._model.EncodeAsIds(self._unknown + part)[self._unknown_length :]
            else:
                ids += self._model.EncodeAsIds(part)
        lone_space = ids[:1] == [self._model.PieceToId(_SPACE)]
        return ids[1:] if lone_space and len(ids) > 1 and ids[1] in self.specials.values() else ids


def _added(directory: Path, settings: dict[str, Any]) -> dict[str, int]:
    """`added_tokens.json` is what counted before transformers wrote `added_tokens_decoder`."""
    older = directory / "added_tokens.json"
    if "added_tokens_decoder" not in settings:
        return read_json_object(older) if older.exists() else {}
    return {token["content"]: int(index) for index, token in settings["added_tokens_decoder"].items()}


def _byte_level_bpe(directory: Path) -> Any:
    from transformers import AutoTokenizer

    with temporary_place() as folder:
        # Away from config.json, whose model_type transformers does not know.
        for name in _BPE_FILES:
            if (directory / name).exists():
                shutil.copyfile(directory / name, folder / name)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _has_byte_fallback(directory: Path) -> bool:
    """Whether a `tokenizer.json` is a SentencePiece vocabulary, as transformers 5 saves Llama's."""
    path = directory / "tokenizer.json"
    is_byte_level = (directory / "merges.txt").exists() or not path.exists()
    return not is_byte_level and bool(read_json_object(path)["model"].get("byte_fallback"))


def _scores(pieces: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Of pieces without scores: what is to be joined first has the highest."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault(pair.replace(" ", ""), rank)
    return [-float(first.get(piece, len(merges))) for piece in pieces]


def merges_in(directory: Path) -> list[str]:
    """Pairs of pieces, the first to be joined first."""
    if (directory / "merges.txt").exists():
        lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
        return [line for line in lines if line and not line.startswith("#version")]
    pairs = read_json_object(directory / "tokenizer.json")["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def conversations(num_plain: int = 200) -> list[list[Turn]]:
    """Over `num_plain` conversations: unicode, special text, white space, empty, pictures, several turns."""
    texts = [*_TEXTS, *(f"{prefix}{text}{suffix}" for prefix, suffix in _AFFIXES for text in _TEXTS)]
    found: list[list[Turn]] = []
    for text in texts[:num_plain]:
        found.append([(text, None)])
    found += [[(f"{IMAGE}\n{text}", None)] for text in _TEXTS]
    found += [[(f"{text}{IMAGE}", None)] for text in _TEXTS[:10]]
    found += [[("hi", text), (text, None)] for text in _TEXTS]
    found += [[(f"{IMAGE}\n{text}", " Yes. "), ("Sure?", text), ("And?", None)] for text in _TEXTS[:20]]
    found += [[(_LONG, None)], [(f"{IMAGE}\n{_LONG}", None)]]
    return found


_AFFIXES = ((" ", ""), ("", " "), ("\n", "\n"), ("", "\t."), ("(", ")"), ("1", "2"), ("x", "\u00e9"))
# Longer than any length at which a tokenizer.json may cut, some 20 000 characters without a repetition.
_LONG = " ".join(f"word {number}" for number in range(2000))
_TEXTS = (
    *("", " ", "  ", "\n", "\n\n\n", "\t", " \n \t ", "What is this?", "What is in the picture?"),
    *("Hello world", "two  spaces", "      indented", "new\nline", "line\r\nfeed", "12345 6.78 1e-9"),
    *("it's don't I'll you've", "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d"),
    *("\u4f60\u597d\uff0c\u4e16\u754c", "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002"),
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    *("\u05e9\u05dc\u05d5\u05dd", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!"),
    *("\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    "\U0001f431\U0001f436 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467",
    *("e\u0301 combining and \u00e9 composed", "\uff26\uff35\uff2c\uff2c width", "\u00a0no-break\u00a0space"),
    *("zero\u200bwidth\ufeff", "\u2581underscore \u2581", "a" * 60, "</s>", "a </s> b", "<s>", "<unk>"),
    *("</s></s>", "<s> </s>", "<|endoftext|>", "<|im_end|>", "USER: ASSISTANT:"),
    *("ASSISTANT: sure.</s>USER: hm", "{question} {answer} {}", "100% of $5 & #1 @home ~/x\\y"),
    *("def f(x):\n    return x ** 2\n", "<html><body class='a'>&amp;</body></html>"),
    *("The quick brown fox jumps over the lazy dog.", "ALL CAPS AND mIxEd CaSe"),
    *("http://example.org/a?b=c&d=%20", "\x00\x01\x7f"),
)
