"""Messages of a request -> the turns, pictures and system text that a model is asked."""

from dataclasses import dataclass

from PIL import Image

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.prompt import Turn

from .errors import ApiError
from .images import MAX_PICTURES, KnownPictures
from .request import ChatRequest, Message, Part

CHARACTERS_A_POSITION = 32  # of all texts: far more than any tokenizer puts into one token


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Attributes:
        turns: questions, with a marker for each picture, and answers; the last one's is None.
        pictures: of all turns, in order.
        image_ids: SHA-256 of each picture's file.
        system: text in the place of the template's own, None for that.
    """

    turns: list[Turn]
    pictures: list[Image.Image]
    image_ids: list[str]
    system: str | None


def read_messages(request: ChatRequest, known: KnownPictures, context_length: int) -> Asked:
    """Turns of messages; messages of one role in a row are one, with a line feed between.

    Raises:
        ApiError: an order that is no conversation, too much text, too many or bad pictures.
    """
    _check_sizes(request.messages, context_length)
    system: list[str] = []
    spoken: list[tuple[str, str]] = []  # role, text with markers
    found: list[tuple[str, Image.Image]] = []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        role = "system" if message.role == "developer" else message.role
        text = _text(message, where, known, found)
        if role == "system":
            if spoken:
                raise ApiError(400, "a system message must stand before all others.", param=where)
            system.append(text)
        elif spoken and spoken[-1][0] == role:
            spoken[-1] = (role, f"{spoken[-1][1]}\n{text}")
        else:
            spoken.append((role, text))
    if not spoken or spoken[0][0] != "user":
        raise ApiError(400, "the first message after the system's must be the user's.", param="messages")
    if spoken[-1][0] != "user":
        raise ApiError(400, "the last message must be the user's.", param="messages")
    texts: list[str | None] = [text for _, text in spoken]
    texts.append(None)
    turns = [(str(question), answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]
    if not turns[-1][0].strip():
        raise ApiError(400, "the last message is empty.", param=f"messages[{len(request.messages) - 1}]")
    return Asked(turns, [one for _, one in found], [id_ for id_, _ in found], "\n".join(system) or None)


def _check_sizes(messages: list[Message], context_length: int) -> None:
    parts = [part for each in messages if not isinstance(each.content, str) for part in each.content]
    pictures = sum(part.type != "text" for part in parts)
    if pictures > MAX_PICTURES:
        raise ApiError(400, f"{pictures} pictures; {MAX_PICTURES} at most.", param="messages")
    characters = sum(len(each.content) for each in messages if isinstance(each.content, str))
    characters += sum(len(part.text or "") for part in parts)
    most = CHARACTERS_A_POSITION * context_length
    if characters > most:
        message = f"{characters:,} characters of text; a context of {context_length} holds {most:,} at most."
        raise ApiError(400, message, param="messages", code="context_length_exceeded")


def _text(message: Message, where: str, known: KnownPictures, found: list[tuple[str, Image.Image]]) -> str:
    """A message's text, with a marker for each picture, whose pixels are added to `found`."""
    may_have_marker = message.role == "assistant"  # the model wrote it; `Model.answer` drops it
    if isinstance(message.content, str):
        return _plain(message.content, f"{where}.content", may_have_marker)
    texts = []
    for number, part in enumerate(message.content):
        here = f"{where}.content[{number}]"
        if [part.text, part.image_url, part.image_id].count(None) != 2 or getattr(part, part.type) is None:
            raise ApiError(400, f"a part of type {part.type} has {part.type}, and no other.", param=here)
        if part.type == "text":
            texts.append(_plain(part.text or "", here, may_have_marker))
            continue
        if message.role != "user":
            raise ApiError(400, "only the user's messages may have pictures.", param=here)
        found.append(_picture(part, here, known))
        texts.append(IMAGE_MARKER)
    return "\n".join(texts)


def _picture(part: Part, where: str, known: KnownPictures) -> tuple[str, Image.Image]:
    if part.image_url is not None:
        return known.from_url(part.image_url.url, f"{where}.image_url.url")
    return known.from_id(part.image_id or "", f"{where}.image_id")


def _plain(text: str, where: str, may_have_marker: bool) -> str:
    if IMAGE_MARKER in text and not may_have_marker:
        raise ApiError(400, f"{IMAGE_MARKER} stands for a picture, and may not stand in a text.", param=where)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(
            400, "the text holds half of a surrogate pair, which is no character.", param=where
        ) from None
    return text
