"""All pictures of a report, as files and as text for a page."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .figures import Record

# Name of the file -> what it shows; each is left out where its figures were not measured.
CAPTIONS = {
    "report": "Stages, distribution of the runs, speed with its interval, and memory",
    "choice": "Accuracy against bytes, and against the time to the first token",
    "budgets": "Accuracy against the time to the first token, by visual tokens of a picture",
    "roofline": "Stages below the machine's roofs",
    "growth": "Growth with visual tokens, text, pictures and context",
}


def draw_all(record: Record) -> Iterator[tuple[str, Any]]:
    """Each picture that a record has figures for, by its name; needs matplotlib."""
    from .plot import draw_report
    from .plot_budgets import draw_budgets
    from .plot_choice import draw_choice
    from .plot_growth import draw_growth
    from .plot_roofline import draw_roofline

    drawn = (draw_report, draw_choice, draw_budgets, draw_roofline, draw_growth)
    for name, draw in zip(CAPTIONS, drawn, strict=True):
        if (figure := draw(record)) is not None:
            yield name, figure


def write_png(figure: Any, path: Path) -> None:
    """Write a picture's file."""
    figure.savefig(path, dpi=130)


def svg_text(name: str, figure: Any) -> str:
    """A picture as an element of a page, the same for the same figures."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Letters stay letters, and ids that the pictures of one page have are apart.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
