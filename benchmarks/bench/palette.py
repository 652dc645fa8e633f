"""Colours of every plot: one set for stages, another for rows; both told apart without colour vision.

Sources: docs/sources/measuring.md#colours.
"""

# Of Okabe and Ito, dark to light in the order of the chain.
STAGE_COLOURS = {
    "tokenize": "#555555",
    "preprocess": "#CC79A7",
    "vision": "#0072B2",
    "prefill": "#E69F00",
    "decode": "#009E73",
    "per token": "#009E73",
    "not told apart": "#D0D0D0",
}
# Of Paul Tol, muted.
_ROW_COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#882255"),
    *("#44AA99", "#999933", "#AA4499", "#DDCC77"),
)
_MARKERS, _LINES = "osD^vP", ("-", "--", ":")
HOST_COLOUR, DEVICE_COLOUR, CONTROL_COLOUR = "#999999", "#333333", "#888888"


def row_style(index: int) -> dict[str, str]:
    """Colour, marker and line of a row by its place; they go round, each after the one before."""
    turn = index // len(_ROW_COLOURS)
    return {
        "color": _ROW_COLOURS[index % len(_ROW_COLOURS)],
        "marker": _MARKERS[turn % len(_MARKERS)],
        "linestyle": _LINES[turn % len(_LINES)],
    }
