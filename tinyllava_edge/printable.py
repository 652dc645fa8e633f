"""What a terminal may be shown of a text that somebody else wrote."""

import re

# C0 but for tab and line feed, DEL, C1: what a terminal obeys; what turns the order of text around; and half
# surrogate pairs, which no encoding has.
OBEYED = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, *, line_ends: bool = False) -> str:
    r"""Text of a file or a user for a terminal: what it would obey is written out, as `\x1b`.

    Args:
        text: with the line ends that it may have.
        line_ends: write those out, too.
    """
    shown = OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.replace("\n", "\\n") if line_ends else shown
