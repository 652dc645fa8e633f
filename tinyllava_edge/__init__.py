"""tinyllava-edge: from a TinyLLaVA checkpoint to a device.

from tinyllava_edge import open_bundle

with open_bundle("nano") as model:
    for piece in model.chat("What is this?", ["photo.jpg"]):
        print(piece, end="", flush=True)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.engine import Model, open_bundle

__all__ = ["Model", "__version__", "open_bundle"]
__version__ = version("tinyllava-edge")


def __getattr__(name: str) -> Any:
    """Import the runtime only when it is used, so that `--help` stays quick."""
    if name in ("open_bundle", "Model"):
        return getattr(import_module("tinyllava_edge.runtimes.engine"), name)
    raise AttributeError(name)
