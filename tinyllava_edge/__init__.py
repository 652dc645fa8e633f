"""tinyllava-edge: from a TinyLLaVA checkpoint to a device.

from tinyllava_edge import open_bundle

with open_bundle("nano") as model:
    print(model.ask("What is this?", ["photo.jpg"]))
    for piece in model.chat("What is this?", ["photo.jpg"]):
        print(piece, end="", flush=True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.chat import Chat
    from tinyllava_edge.runtimes.model import Model, open_bundle

    __version__: str

__all__ = ["Chat", "Model", "__version__", "open_bundle"]


def __getattr__(name: str) -> Any:
    """Import the runtime, or look up the version, only when it is used: `--help` stays quick."""
    if name == "__version__":
        return import_module("importlib.metadata").version("tinyllava-edge")
    if name in __all__:
        return getattr(import_module("tinyllava_edge.runtimes.model"), name)
    raise AttributeError(name)
