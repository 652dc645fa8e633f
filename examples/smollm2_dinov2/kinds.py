"""What kind of thing an emoji shows, by Unicode's subgroups, and which colour a drawing mostly has."""

import numpy as np
import numpy.typing as npt
from PIL import Image

KINDS = {
    "mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "bug": ("animal-bug",),
    "sea animal": ("animal-marine",),
    "plant": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "meal": ("food-prepared", "food-asian"),
    "dessert": ("food-sweet",),
    "drink": ("drink",),
    "building": ("place-building", "place-religious"),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
    "weather": ("sky-weather",),
    "sport": ("sport",),
    "musical instrument": ("musical-instrument",),
    "clothing": ("clothing",),
    "tool": ("tool",),
    "hand": ("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed"),
    "face": ("face-smiling", "face-concerned", "face-neutral-skeptical", "face-negative", "face-tongue"),
    "person": ("person", "person-role", "person-fantasy"),
}
# Subgroups of transport have things that drive nowhere.
NO_VEHICLES = frozenset({
    "bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel", "police car light",
    "horizontal traffic light", "vertical traffic light", "stop sign", "construction", "station", "anchor",
    "ring buoy", "seat", "parachute", "satellite",
})  # fmt: skip

_HUES = ((15, "red"), (36, "orange"), (68, "yellow"), (165, "green"), (258, "blue"), (290, "purple"))
_PALE, _DARK, _WHITE = 0.2, 0.22, 0.82  # saturation below is grey; value below is black, above white
_CLEAR_SHARE = 0.45  # of the pixels, for a colour to be the main one
_PINK_SATURATION, _BROWN_VALUE = 0.55, 0.68


def main_colour(drawing: Image.Image) -> str | None:
    """The colour that a drawing with transparency mostly has; None where no colour is clearly that.

    Hue, saturation and value of each pixel that is drawn choose among eleven names; the bounds were set by
    eye and are the definition of the answer, not a measurement of how people name colours.
    """
    pixels = np.asarray(drawing.convert("RGBA"), dtype=np.float64).reshape(-1, 4)
    drawn = pixels[pixels[:, 3] > 127, :3] / 255
    names = _colour_names(drawn)
    found, counts = np.unique(names, return_counts=True)
    if not len(found) or counts.max() < _CLEAR_SHARE * len(names):
        return None
    return str(found[counts.argmax()])


def _colour_names(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.str_]:
    """[n, 3] of 0 to 1 -> [n] names."""
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    spread = value - low
    saturation = spread / np.maximum(value, 1e-9)
    red, green, blue = rgb.T
    safe = np.maximum(spread, 1e-9)
    sixth = np.select(
        [value == red, value == green],
        [(green - blue) / safe % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    hue = 60 * sixth
    warm = [(hue < bound, name) for bound, name in _HUES]
    names = np.select([mask for mask, _ in warm], [name for _, name in warm], "pink")
    reddish = (names == "red") | (hue >= 340)
    names = np.where(hue >= 340, "red", names)
    names = np.where(reddish & (saturation < _PINK_SATURATION) & (value > _BROWN_VALUE), "pink", names)
    brown = (hue < 50) & (value < _BROWN_VALUE) & ~((names == "red") & (saturation > 0.75) & (value > 0.45))
    names = np.where(brown, "brown", names)
    grey = np.select([value < _DARK, value > _WHITE], ["black", "white"], "grey")
    return np.where((saturation < _PALE) | (value < _DARK), grey, names)
