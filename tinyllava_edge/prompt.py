"""A conversation -> the prompt string -> token ids, as upstream makes them.

Source: docs/sources/tinyllava.md#prompt-templates and docs/sources/tinyllava.md#token-ids. Text is tokenised
in pieces around `<image>`, each piece on its own. No language model's own chat template is ever used.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
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


EOS = ""  # as the end of a template: whatever the tokenizer's EOS token is


@dataclass(frozen=True, kw_only=True)
class Template:
    """The text around questions and answers. `{question}`, `{answer}` and `{picture}` are replaced alone.

    Attributes:
        between: in front of every question but the first.
        picture: what stands for a picture in a question, or in the place that the template has for them.
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

    def render(self, turns: Sequence[Turn], *, end: str | None = None) -> str:
        """The prompt string; `end` stands in for the end-of-turn string."""
        parts = [self.system]
        for number, (question, answer) in enumerate(turns):
            parts.append(self.between if number else "")
            parts.append(self._asked(question))
            if answer is not None:
                parts.append(self.answer.replace("{answer}", answer))
                parts.append(self.end if end is None else end)
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
            PromptError: it has no place for one.
        """
        if self.system != _SYSTEM:
            raise PromptError(f"template {self.name!r} has no place for a system text.")
        return replace(self, system=f"{text} ")


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
                picture=f"{before}{IMAGE_MARKER}",
                between="\n",
                starts_with_bos=False,
            )
            for name, before in (("", ""), ("_row", "<row_1_col_1>"), ("_global", "<|global_image|>"))
        ),
        # Stage 1 of training: the picture and its caption, no question.
        Template(name="pretrain", system="", question=IMAGE_MARKER, answer="{answer}", end="\n"),
    )
}


def template_named(name: str) -> Template:
    """Look a template up by its exact name.

    Raises:
        PromptError: there is none; the message lists the names.
    """
    if name not in TEMPLATES:
        raise PromptError(f"template {name!r} is not known. Known: {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def template_fault(template: Template) -> str | None:
    """Why a template cannot be used to ask questions, or None where it can."""
    if template.question.count("{question}") != 1 or template.answer.count("{answer}") != 1:
        return f"template {template.name!r} needs '{{question}}' and '{{answer}}' once each"
    if not template.end:
        return f"template {template.name!r} has no end of turn"
    if IMAGE_MARKER in "".join((template.system, template.question, template.answer, template.end)):
        return f"template {template.name!r} has a picture marker of its own"
    if template.question.count("{picture}") > 1 or template.picture.count(IMAGE_MARKER) != 1:
        return f"template {template.name!r} has more or less than one place for a picture"
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
        template: of the prompt; None for TinyLLaVA's.

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
        self._json = tokenizer_json
        self._plain: dict[Template, tuple[Tokenizer, dict[int, int], Template]] = {}

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
        if honour_special:
            return self._join(self._exact, {}, template.render(turns))
        plain, to_original, stand_in = self._plain_tokenizer(template)
        return self._join(plain, to_original, stand_in.render(turns))

    def encode_text(self, text: str) -> list[int]:
        """Ids of one text as upstream's tokenizer call gives them, BOS first where there is one."""
        ids = _encode(self._exact, text)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        with guarded(_FILE, PromptError):
            return str(self._exact.decode(list(ids), skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Id of one token's exact string, or None."""
        found: int | None = self._exact.token_to_id(token)
        return found

    def _join(self, tokenizer: Tokenizer, to_original: dict[int, int], prompt: str) -> list[int]:
        ids: list[int] = [] if self.bos_id is None else [self.bos_id]
        for index, piece in enumerate(prompt.split(IMAGE_MARKER)):
            if index:
                ids.append(IMAGE_TOKEN_ID)
            ids.extend(to_original.get(token, token) for token in _encode(tokenizer, piece))
        return ids

    def _plain_tokenizer(self, template: Template) -> tuple[Tokenizer, dict[int, int], Template]:
        """A tokenizer to which every special token is unknown, its ids' originals, and the template for it.

        Renaming the special tokens, rather than switching them off, leaves everything that happens around
        them (prefix spaces, splits) as it is.
        """
        if template not in self._plain:
            data = json.loads(self._json)
            originals: dict[str, int] = {}
            renamed_to: dict[str, str] = {}
            for token in data["added_tokens"]:
                if token["content"] == template.end or token["special"]:
                    text = renamed_to[token["content"]] = _private_text()
                    token["content"] = text
                originals[token["content"]] = token["id"]
            renamed = json.dumps(data)
            del data
            tokenizer = open_tokenizer(renamed, _FILE, PromptError, checked=True)
            del renamed
            return_holes()
            loaded = {text: tokenizer.token_to_id(text) for text in originals}
            to_original = {id_: originals[text] for text, id_ in loaded.items() if id_ is not None}
            # An end that is no token of this vocabulary is text for everybody.
            self._plain[template] = (tokenizer, to_original, _respelled(template, renamed_to))
        return self._plain[template]


def _respelled(template: Template, renamed: Mapping[str, str]) -> Template:
    """The template with its special tokens under other names; TinyLLaVA's have none but their end."""
    texts = {name: getattr(template, name) for name in ("question", "picture", "between")}
    for token in sorted(renamed, key=len, reverse=True) if template.has_place else ():
        texts = {name: text.replace(token, renamed[token]) for name, text in texts.items()}
    return replace(template, end=renamed.get(template.end, template.end), **texts)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    with guarded(_FILE, PromptError):
        try:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError:  # a lone surrogate, as bytes of a command line that are no UTF-8 become
            raise PromptError("the text holds a character that is not valid Unicode.") from None


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
