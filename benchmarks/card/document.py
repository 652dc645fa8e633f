"""What a card says, apart from how it is written: as Markdown, and as one HTML file that needs nothing else.

Every text may come from a file that somebody else wrote, so both writers escape all of it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from tinyllava_edge.benchmarks.bench.page import END_OF_TABLE, TABLE
from tinyllava_edge.printable import printable

MARKER = '<meta name="generator" content="tinyllava-edge card">'
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #888; }
code, pre { background: #f4f4f4; } pre { padding: .6rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; } code, pre { background: #333; } th, td { border-color: #555; }
}
"""
# Nothing is loaded, and nothing runs, whatever a text says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# What Markdown may take for markup; an underscore inside a word is none. `:` and `.` are where links begin.
_MARKUP = re.compile(
    r"[^\w\s.,;:()+\-=/%'\"?]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.",
    re.IGNORECASE,
)
_BLOCK = re.compile(r"[-+=]|\d+[.)]")  # at a line's beginning: a list, a rule, a heading
_NAMED = {"<": "&lt;", ">": "&gt;", "&": "&amp;", **{mark: f"\\{mark}" for mark in "*_[]#!"}}
_SPAN = re.compile(r"[^`|\\]*[^`|\\\s][^`|\\]*")


@dataclass(frozen=True)
class Code:
    """A text of a file or a command, which is shown as it is."""

    text: str


Piece = str | Code
Line = Piece | Sequence[Piece]


@dataclass(frozen=True)
class Rows:
    """A table; its columns are the keys of the first row."""

    rows: Sequence[Mapping[str, Line]]


@dataclass(frozen=True)
class Section:
    """A heading, and below it lines, tables, and lines for a shell."""

    title: str
    lines: Sequence[Line] = ()
    tables: Sequence[Rows] = ()
    shell: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Document:
    """A card.

    Attributes:
        metadata: the hub's, in front of the Markdown.
        missing: what no file says, in words.
    """

    title: str
    metadata: Mapping[str, str | Sequence[str]]
    sections: Sequence[Section]
    missing: Sequence[str] = field(default=())


def markdown_of(document: Document) -> str:
    """The card as the hub's README.md."""
    return "\n".join(_markdown_lines(document)) + "\n"


def _markdown_lines(document: Document) -> Iterator[str]:
    yield "---"
    for key, value in document.metadata.items():  # JSON is YAML, and has no line ends
        yield f"{key}: {json.dumps(value if isinstance(value, str) else list(value))}"
    yield f"---\n\n# {_markdown(Code(document.title))}"
    for section in document.sections:
        yield f"\n## {_markdown(section.title)}"
        for line in section.lines:
            text = _markdown(line).lstrip()
            yield f"\n&#{ord(text[0])};{text[1:]}" if _BLOCK.match(text) else f"\n{text}"
        for table in section.tables:
            names = list(table.rows[0])
            yield f"\n| {' | '.join(map(_markdown, names))} |\n|{'---|' * len(names)}"
            for row in table.rows:
                yield f"| {' | '.join(_markdown(row[name]) for name in names)} |"
        if section.shell:
            yield "\n" + "\n".join(f"    {printable(line, line_ends=True)}" for line in section.shell)


def _markdown(line: Line) -> str:
    if isinstance(line, Code):
        text = printable(line.text, line_ends=True)
        # Between backticks nothing is markup; what ends them, or a cell, is written as entities.
        return f"`{text}`" if _SPAN.fullmatch(text) else f"<code>{_entities(text)}</code>"
    if isinstance(line, str):
        return _entities(printable(line, line_ends=True))
    return "".join(map(_markdown, line))


def _entities(text: str) -> str:
    return _MARKUP.sub(lambda found: "".join(_NAMED.get(one) or f"&#{ord(one)};" for one in found[0]), text)


def page_of(document: Document) -> str:
    """The card as one HTML file."""
    return "\n".join(_page_lines(document)) + "\n"


def _page_lines(document: Document) -> Iterator[str]:
    title = _html(document.title)
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'{MARKER}<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main><h1>{title}</h1>"
    yield f"{TABLE}<tbody>"
    for key, value in document.metadata.items():
        shown = value if isinstance(value, str) else ", ".join(value)
        yield f'<tr><th scope="row">{_html(key)}</th><td>{_html(shown)}</td></tr>'
    yield f"</tbody>{END_OF_TABLE}"
    for section in document.sections:
        yield f"<h2>{_html(section.title)}</h2>"
        yield from (f"<p>{_html(line)}</p>" for line in section.lines)
        for table in section.tables:
            names = list(table.rows[0])
            heads = "".join(f'<th scope="col">{_html(name)}</th>' for name in names)
            yield f"{TABLE}<thead><tr>{heads}</tr></thead><tbody>"
            for row in table.rows:
                yield "<tr>" + "".join(f"<td>{_html(row[name])}</td>" for name in names) + "</tr>"
            yield f"</tbody>{END_OF_TABLE}"
        if section.shell:
            commands = "\n".join(printable(line, line_ends=True) for line in section.shell)
            yield f'<pre tabindex="0">{escape(commands)}</pre>'
    yield "</main></body></html>"


def _html(line: Line) -> str:
    if isinstance(line, Code):
        return f"<code>{escape(printable(line.text, line_ends=True))}</code>"
    if isinstance(line, str):
        return escape(printable(line, line_ends=True))
    return "".join(map(_html, line))
