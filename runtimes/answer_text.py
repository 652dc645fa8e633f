"""Generated ids -> the text of an answer, in pieces that never have to be taken back."""

from collections.abc import Callable, Sequence

from tinyllava_edge.errors import UsageError

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of an unfinished UTF-8 character


class AnswerText:
    """The text of one answer, growing token by token.

    The pieces together are upstream's answer: all text up to the first stop string, stripped. Held back until
    a later token decides: bytes of an unfinished character, text that may become a stop string, and white
    space at the end.

    Args:
        decode: ids -> text, special tokens left out.
        stop: strings that end the answer, and are no part of it.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        if not all(stop):
            raise UsageError("a stop string must not be empty.")
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = 0  # ids before it are only context for the decoder, for those before `_read`
        self._read = 0  # ids before it have been turned into text
        self._held = ""
        self.text = ""
        self.stopped = False

    @property
    def holds_text(self) -> bool:
        """Whether generated text is held back, other than white space."""
        return bool(self._held.strip()) or self._read < len(self._ids)

    def push(self, token: int) -> str:
        """Add a token; returns the piece that may be shown now, often empty."""
        self._ids.append(token)
        self._held += self._new_text(final=False)
        return self._release(final=False)

    def finish(self) -> str:
        """End the answer; returns what was held back."""
        self._held += self._new_text(final=True)
        return self._release(final=True)

    def _new_text(self, *, final: bool) -> str:
        """Text of the ids not yet read, or nothing while a character is unfinished.

        A decoder treats the first token of a text differently (it drops its space), so the ids are decoded
        behind those of the piece before, and the text of those is cut off.
        """
        before = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(_BROKEN) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _release(self, *, final: bool) -> str:
        """Take the part of the held text that is safe to show."""
        if self.stopped:
            return ""
        found = [(self._held.find(stop), len(stop)) for stop in self._stop if stop in self._held]
        self.stopped = bool(found)
        if found:  # the one complete first counts, wherever the tokens end
            _, start = min((start + length, start) for start, length in found)
            safe = self._held[:start]
        else:
            safe = self._held[: len(self._held) - (0 if final else self._possible_stop())]
        piece = safe.rstrip()
        self._held = "" if self.stopped else self._held[len(piece) :]
        if not self.text:
            piece = piece.lstrip()
        self.text += piece
        return piece

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(len(self._held), max((len(stop) for stop in self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
