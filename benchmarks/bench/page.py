"""A report as one HTML file that needs nothing else: tables and notes of the Markdown, pictures inside."""

import re
from collections.abc import Iterator, Mapping
from html import escape

from .figures import Record
from .notes import notes_of, title_of, warning_lines, what_was_asked
from .pictures import CAPTIONS
from .tables import Table, tables_of

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; }
.warning { border-left: .4rem solid #D55E00; padding: .4rem .8rem; background: #fdf1ea; font-weight: 600; }
"""

# Around every table, which scrolls by itself where it is wider than the screen.
TABLE, END_OF_TABLE = '<div class="wide" tabindex="0"><table>', "</table></div>"


def page_of(record: Record, pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        record: of a comparison.
        pictures: SVG elements by a name of `CAPTIONS`; none where they could not be drawn.
    """
    return "\n".join(_lines(record, pictures)) + "\n"


def _lines(record: Record, pictures: Mapping[str, str]) -> Iterator[str]:
    title = escape(title_of(record))
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main><h1>{title}</h1>"
    for line in warning_lines(record):
        yield f'<p class="warning">{escape(line)}</p>'
    yield f"<p>{escape(what_was_asked(record))}</p>"
    tables = list(tables_of(record))
    yield from _table_lines(tables[0])
    for name, svg in pictures.items():
        yield f"<figure>{svg}<figcaption>{CAPTIONS[name]}</figcaption></figure>"
    for table in tables[1:]:
        yield from _table_lines(table)
    yield "<h2>Notes</h2><ul>"
    for line in notes_of(record):
        yield f"<li>{_inline(line)}</li>"
    yield "</ul></main></body></html>"


def _table_lines(table: Table) -> Iterator[str]:
    yield f"<h2>{escape(table.title)}</h2>{TABLE}<thead><tr>"
    yield "".join(f"<th>{escape(name)}</th>" for name in table.columns) + "</tr></thead><tbody>"
    for row in table.rows:
        yield "<tr>" + "".join(f"<td>{escape(row[name])}</td>" for name in table.columns) + "</tr>"
    yield f"</tbody>{END_OF_TABLE}"


def _inline(text: str) -> str:
    """The little Markdown that notes have."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)
