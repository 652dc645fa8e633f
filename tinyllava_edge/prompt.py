"""A conversation -> the prompt string -> token ids, as upstream makes them.

Source: docs/sources/tinyllava.md#prompt-templates, docs/sources/tinyllava.md#token-ids and
docs/sources/llava_line.md#prompts. Text is tokenised in pieces around `<image>`, each piece on its
own. No language model's own chat template is ever used.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.errors import PromptError, UsageError, guarded
from tinyllava_edge.memory import return_holes
from tinyllava_edge.tokenizer_file import open_tokenizer

_FILE = "tokenizer.json"
Turn = tuple[str, str | None]  # question, answer (None: not answered yet)

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_LLAMA3_HEAD = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
_LLAMA3_TURN = (
    "<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_LLAMA2_SYSTEM = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural language."
    "\n<</SYS>>\n\n"
)
_CHATML_HEAD = "<|im_start|>system\n"
_CHATML_LINES = "\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
# What stands around a system text; the last is upstream's, where nothing but a space does.
_FRAMES = (
    (_LLAMA3_HEAD, "<|eot_id|>"),
    (_CHATML_HEAD, "<|im_end|>"),
    ("<|system|>\n", "<|end|>"),
    ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
    ("", " "),
)
_MARK = re.compile(r"<\|[^|<>]+\|>|</?s>|<eos>|<im_(?:start|end)>|<row_\d_col_\d>")


EOS = ""  # as the end of a template: whatever the tokenizer's EOS token is


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text around questions and answers. `{question}`, `{answer}` and `{picture}` alone are replaced.

    Attributes:
        between: in front of every question but the first.
        picture: what stands for a picture in a question, or in the place that the template has for pictures.
        starts_with_bos: prompts start with the tokenizer's BOS token where it has one.
    """

    name: str
    system: str = _SYSTEM
    question: str = "USER: {question} ASSISTANT:"
    answer: str = " {answer}"
    end: str
    between: str = ""
    picture: str = IMAGE_MARKER
    starts_with_bos: bool = True

    def render(self, turns: Sequence[Turn]) -> str:
        """The prompt string."""
        parts = [self.system]
        for number, (question, answer) in enumerate(turns):
            parts.append(self.between if number else "")
            parts.append(self._asked(question))
            if answer is not None:
                parts.append(self.answer.replace("{answer}", answer))
                parts.append(self.end)
        return "".join(parts)

    @property
    def has_place(self) -> bool:
        """Whether pictures have a place of their own, before the text of their question."""
        return "{picture}" in self.question

    def _asked(self, question: str) -> str:
        if not self.has_place:
            return self.question.replace("{question}", question.replace(IMAGE_MARKER, self.picture))
        text, pictures = question, 0
        while text.startswith(IMAGE_MARKER):
            text, pictures = text.removeprefix(IMAGE_MARKER).removeprefix("\n"), pictures + 1
        return self.question.replace("{picture}", self.picture * pictures).replace("{question}", text)

    def with_system(self, text: str) -> "Template":
        """This template with another system text.

        Raises:
            PromptError: it has no place for one, or the text has a picture's marker.
        """
        if self.frame is None:
            raise PromptError(f"template {self.name!r} has no place for a system text. Leave it out.")
        if IMAGE_MARKER in text:
            raise PromptError(f"the system text has {IMAGE_MARKER}; pictures belong to questions.")
        return replace(self, system=text.join(self.frame))

    @property
    def frame(self) -> tuple[str, str] | None:
        """What stands around its system text; None where it has no place for one."""
        fits = ((a, b) for a, b in _FRAMES if self.system.startswith(a) and self.system.endswith(b))
        return next(fits, None) if self.system else None

    @property
    def _system(self) -> tuple[str, str, str]:
        """What is before the system text, that text, which is typed like a question, and what is behind."""
        before, after = self.frame or (self.system, "")
        return before, self.system.removeprefix(before).removesuffix(after), after

    @property
    def marks(self) -> list[str]:
        """The special tokens that its own text is made of, once each."""
        parts = (*self._system[::2], self.picture, self.question, self.answer, self.end, self.between)
        return list(dict.fromkeys(_MARK.findall("".join(parts))))

    def with_marks(self, stand_ins: Mapping[str, str]) -> "Template":
        """This template with other text in the place of its special tokens."""

        def put(text: str) -> str:
            return _MARK.sub(lambda match: stand_ins.get(match[0], match[0]), text)

        before, system, after = self._system
        return replace(
            self,
            system=f"{put(before)}{system}{put(after)}",
            question=put(self.question),
            answer=put(self.answer),
            between=put(self.between),
            picture=put(self.picture),
            end=stand_ins.get(self.end, self.end),
        )


TEMPLATES = {
    template.name: template
    for template in (
        Template(name="phi", end="<|endoftext|>"),
        Template(name="llama", end="</s>"),
        Template(name="gemma", end="<eos>"),
        Template(name="qwen2_base", end="<|endoftext|>"),
        Template(name="qwen2_instruct", end="<|im_end|>"),
        # Ours: docs/sources/language_models.md#templates-of-families-that-upstream-lacks
        Template(name="llama3", end="<|end_of_text|>"),
        Template(name="llama3_instruct", end="<|eot_id|>"),
        # nanoVLM's: docs/sources/nanovlm.md#prompt
        Template(
            name="nanovlm_question",
            system="",
            question="{picture}Question: {question} Answer:",
            answer="{answer}",
            end=EOS,
        ),
        *(
            Template(
                name=f"nanovlm_chat{name}",
                system="",
                question="<|im_start|>user\n{picture}{question}<|im_end|>\n<|im_start|>assistant\n",
                answer="{answer}",
                end="<|im_end|>",
                between="\n",
                picture=f"{before}{IMAGE_MARKER}",
                starts_with_bos=False,
            )
            for name, before in (("", ""), ("_row", "<row_1_col_1>"), ("_global", "<|global_image|>"))
        ),
        # Stage 1 of training: the picture and its caption, no question.
        Template(name="pretrain", system="", question=IMAGE_MARKER, answer="{answer}", end="\n"),
        # Of LLaVA's code line: docs/sources/llava_line.md#prompts and #templates-by-name
        Template(name="v1", end="</s>"),
        Template(name="llava_v1", system=_SYSTEM.replace("user", "human"), end="</s>"),
        Template(name="bunny", end="<|endoftext|>"),
        Template(name="plain", system="", question="{question}\n", answer="{answer}", end="\n"),
        Template(
            name="chatml_direct",
            system=f"{_CHATML_HEAD}Answer the questions.<|im_end|>",
            question="<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n",
            answer="{answer}",
            end="<|im_end|>",
        ),
        *(
            Template(
                name=name,
                system=f"{_CHATML_HEAD}{system}<|im_end|>",
                question=_CHATML_LINES,
                answer="{answer}",
                end="<|im_end|>",
            )
            for name, system in (
                ("qwen_1_5", "You are a helpful assistant."),
                ("qwen_2", "You are a helpful assistant."),
                ("qwen_2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
            )
        ),
        Template(
            name="phi3_instruct",
            system="<|system|>\nYou are a helpful AI assistant.<|end|>",
            question="\n<|user|>\n{question}<|end|>\n<|assistant|>\n",
            answer="{answer}",
            end="<|end|>",
        ),
        Template(
            name="llava_llama_2",
            system=_LLAMA2_SYSTEM,
            question="{question} [/INST]",
            answer=" {answer} ",
            end="</s>",
            between="<s>[INST] ",
        ),
        Template(
            name="llava_pp_llama3",
            system=f"{_LLAMA3_HEAD}{_SYSTEM.strip()}<|eot_id|>",
            question=_LLAMA3_TURN,
            answer="{answer}",
            end="<|eot_id|>",
        ),
    )
}


# Names that LLaVA's code line has for the same text: docs/sources/llava_line.md#templates-by-name
ALIASES = {
    "vicuna_v1": "v1",
    "minicpm": "v1",
    "mistral_direct": "chatml_direct",
    "phi3": "bunny",
    "phi-2_v0": "phi",
    "stablelm": "phi",
    "qwen": "phi",
}


def template_named(name: str) -> Template:
    """Look a template up by its exact name, or by another name that its text has upstream.

    Raises:
        PromptError: there is none; the message lists the names.
    """
    name = ALIASES.get(name, name)
    if name not in TEMPLATES:
        raise PromptError(f"template {name!r} is not known. Known: {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def template_fault(template: Template) -> str | None:
    """Why a template cannot be used to ask questions, or None where it can."""
    if template.question.count("{question}") != 1 or template.answer.count("{answer}") != 1:
        return f"template {template.name!r} needs '{{question}}' and '{{answer}}' once each"
    if not template.end:
        return f"template {template.name!r} has no end of turn"
    around = template.system + template.question + template.answer + template.end + template.between
    if IMAGE_MARKER in around or template.picture.count(IMAGE_MARKER) != 1:
        return f"template {template.name!r} has a picture marker of its own"
    if template.question.count("{picture}") > 1:
        return f"template {template.name!r} has two places for pictures"
    return None


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse anything but answered turns, and one to answer behind them.

    Raises:
        UsageError: names the turn, what was expected and what was found.
    """
    if not turns:
        raise UsageError("there are no turns; give at least one, (question, None).")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, tuple | list) or len(turn) != 2:
            raise UsageError(f"turn {number} must be a pair of question and answer, found {turn!r:.60}.")
        where, (question, answer) = f"of turn {number} of {len(turns)} must be", turn
        if not isinstance(question, str):
            raise UsageError(f"the question {where} text, found {type(question).__name__}.")
        if number < len(turns) and not isinstance(answer, str):
            raise UsageError(f"the answer {where} text, found {type(answer).__name__}.")
        if number == len(turns) and answer is not None:
            raise UsageError(f"the answer {where} None: it is asked for, found {type(answer).__name__}.")


def place_markers(
    turns: Sequence[Turn], num_pictures: int | None = None, template: Template | None = None
) -> list[Turn]:
    """Put every `<image>` marker where the model expects it.

    A question's marker moves to its front, `<image>` and a line feed before the stripped text; several in one
    question collapse to one (upstream). Only where there are several pictures does a question keep several
    markers, in place. One picture without any marker goes in front of the first question. Where the template
    has a place for pictures, all of a question's go there, and the text stays as it is.

    Args:
        turns: questions and answers.
        num_pictures: pictures given, or None to follow upstream without counting.
        template: of the prompt; None for one that has no such place.

    Raises:
        PromptError: the markers do not fit the number of pictures.
    """
    keep_several = num_pictures is not None and num_pictures > 1
    markers = sum(question.count(IMAGE_MARKER) for question, _ in turns)
    if num_pictures == 1 and markers == 0 and turns:
        turns = [(f"{IMAGE_MARKER}\n{turns[0][0]}", turns[0][1]), *turns[1:]]
    placed: list[Turn] = []
    for question, answer in turns:
        count = question.count(IMAGE_MARKER)
        if template is not None and template.has_place and count:
            question = _in_front(question, count if keep_several else 1)
        elif count == 1 or (count > 1 and not keep_several):
            text = question.replace(IMAGE_MARKER, "").strip()
            question = f"{IMAGE_MARKER}\n{text}" if text else IMAGE_MARKER
        placed.append((question, answer))
    found = sum((text or "").count(IMAGE_MARKER) for turn in placed for text in turn)
    if num_pictures is not None and found != num_pictures:
        raise PromptError(
            f"{num_pictures} picture(s) but {found} {IMAGE_MARKER} marker(s) in the text; "
            "write one marker for each picture."
        )
    return placed


def _in_front(question: str, count: int) -> str:
    """Markers, a line feed, and the text without the markers (and a line feed behind those in front)."""
    while question.startswith(IMAGE_MARKER):
        question = question.removeprefix(IMAGE_MARKER).removeprefix("\n")
    return f"{IMAGE_MARKER * count}\n{question.replace(IMAGE_MARKER, '')}"


def end_of_answer(tokenizer: Tokenizer, template: Template) -> int | None:
    """The one id that ends an answer, None where the vocabulary has no such one.

    It is a token of its own, or else what the end adds behind any text, as a line feed does.
    """
    found: int | None = tokenizer.token_to_id(template.end)
    if found is None:
        before, after = (_encode(tokenizer, text) for text in ("a", f"a{template.end}"))
        found = after[-1] if after[:-1] == before else None
    return found


class TextTokenizer:
    """Token ids of prompts, and text of generated ids.

    Args:
        tokenizer_json: content of a `tokenizer.json`.
        bos_id: id that starts every prompt, or None.
        checked: it is a bundle's, which was checked when the bundle was opened.

    Raises:
        PromptError: `tokenizer_json` is damaged.
    """

    def __init__(self, tokenizer_json: str, *, bos_id: int | None, checked: bool = False) -> None:
        self.bos_id = bos_id
        self._exact = open_tokenizer(tokenizer_json, _FILE, PromptError, checked=checked)
        return_holes()  # reading 150,000 tokens leaves 80 MB of holes
        self._added = self._exact.get_added_tokens_decoder()
        self._json = tokenizer_json
        # By what is special of a template, which a system text does not change.
        self._plain: dict[frozenset[str], tuple[Tokenizer, dict[int, int], dict[str, str]]] = {}

    def encode(self, template: Template, turns: Sequence[Turn], *, honour_special: bool = True) -> list[int]:
        """Ids of a conversation whose markers are placed, -200 standing for each picture.

        Args:
            template: the text around the turns.
            turns: what `place_markers` returned.
            honour_special: True is upstream's way: text such as `</s>` typed by a user becomes the special
                token. False makes typed text plain text; ids are the same wherever no such text occurs.

        Raises:
            PromptError: the text is not Unicode.
        """
        ids = self._join(self._exact, {}, template.render(turns))
        if honour_special or self._has_only_marks(template, turns, ids):
            return ids
        plain, to_original, stand_ins = self._plain_tokenizer(frozenset((*template.marks, template.end)))
        return self._join(plain, to_original, template.with_marks(stand_ins).render(turns))

    def encode_text(self, text: str) -> list[int]:
        """Ids of one text as upstream's tokenizer call gives them, BOS first where there is one."""
        ids = _encode(self._exact, text)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of generated ids; special tokens are left out unless they are asked for."""
        with guarded(_FILE, PromptError):
            return str(self._exact.decode(list(ids), skip_special_tokens=not special))

    def token_id(self, token: str) -> int | None:
        """Id of one token's exact string, or None."""
        found: int | None = self._exact.token_to_id(token)
        return found

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens, which are no part of an answer's text."""
        return frozenset(id_ for id_, token in self._added.items() if token.special)

    def _join(self, tokenizer: Tokenizer, to_original: dict[int, int], prompt: str) -> list[int]:
        ids: list[int] = [] if self.bos_id is None else [self.bos_id]
        for index, piece in enumerate(prompt.split(IMAGE_MARKER)):
            if index:
                ids.append(IMAGE_TOKEN_ID)
            ids.extend(to_original.get(token, token) for token in _encode(tokenizer, piece))
        return ids

    def _has_only_marks(self, template: Template, turns: Sequence[Turn], ids: Sequence[int]) -> bool:
        """Whether a prompt's special tokens are the template's own, and no text of another is typed.

        The plain tokenizer then gives the same ids, and need not be built: a second for 150,000 words.
        """
        own = {*template.marks, template.end}
        special = {
            i: token.content for i, token in self._added.items() if token.special or token.content in own
        }
        stand_ins = {text: _private_text() for text in special.values() if text in own}
        originals = {private: text for text, private in stand_ins.items()}
        prompts = template.render(turns), template.with_marks(stand_ins).render(turns)
        marks = _any_of(special.values()), _any_of(originals)
        # A text that the normalizer makes a special token is found by its id, others by what is typed.
        wanted = [originals[private] for private in marks[1].findall(prompts[1])]
        if [special[id_] for id_ in ids[self.bos_id is not None :] if id_ in special] != wanted:
            return False
        pieces = (
            map(mark.split, prompt.split(IMAGE_MARKER)) for mark, prompt in zip(marks, prompts, strict=True)
        )
        return [*next(pieces)] == [*next(pieces)]

    def _plain_tokenizer(self, own: frozenset[str]) -> tuple[Tokenizer, dict[int, int], dict[str, str]]:
        """A tokenizer that knows no special token, its ids' originals, and what stands for each mark.

        Renaming the special tokens, rather than switching them off, leaves everything that happens around
        them (prefix spaces, splits) as it is. The template's own are renamed with them; one that is no token
        of this vocabulary is text for everybody.
        """
        if own not in self._plain:
            data = json.loads(self._json)
            originals: dict[str, int] = {}
            stand_ins: dict[str, str] = {}
            for token in data["added_tokens"]:
                if token["special"] or token["content"] in own:
                    private = _private_text()
                    stand_ins[token["content"]], token["content"] = private, private
                originals[token["content"]] = token["id"]
            renamed = json.dumps(data)
            del data
            tokenizer = open_tokenizer(renamed, _FILE, PromptError, checked=True)
            del renamed
            return_holes()
            loaded = {text: tokenizer.token_to_id(text) for text in originals}
            to_original = {id_: originals[text] for text, id_ in loaded.items() if id_ is not None}
            self._plain[own] = (tokenizer, to_original, stand_ins)
        return self._plain[own]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    with guarded(_FILE, PromptError):
        try:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError:  # a lone surrogate, as bytes of a command line that are no UTF-8 become
            raise PromptError("the text holds a character that is not valid Unicode.") from None


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of some texts, the longest one first, as the tokenizers library does; of none, nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _private_text() -> str:
    """A text that nobody types: it is random, between characters that no text holds."""
    return f"\ufdd0{secrets.token_hex(8)}\ufdd0"


def label_answers(
    tokenizer: TextTokenizer, template: Template, turns: Sequence[Turn]
) -> tuple[list[int], list[int]]:
    """Token ids of an answered conversation whose markers are placed, and the labels of its answers.

    An answer starts where the ids of the prompt that asks for it end. Equal to upstream's masks wherever
    upstream does not discard the sample (docs/sources/tinyllava.md#labels).
    """
    ids = tokenizer.encode(template, turns)
    labels = [IGNORE_LABEL] * len(ids)
    for index, (question, _) in enumerate(turns):
        start = len(tokenizer.encode(template, [*turns[:index], (question, None)]))
        end = len(tokenizer.encode(template, turns[: index + 1]))
        labels[start:end] = ids[start:end]
    return ids, labels
