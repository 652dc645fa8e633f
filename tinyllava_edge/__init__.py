"""tinyllava-edge: from a TinyLLaVA checkpoint to a device.

from tinyllava_edge import open_bundle

with open_bundle("nano") as model:
    print(model.ask("What is this?", ["photo.jpg"]))
    for piece in model.chat("What is this?", ["photo.jpg"]):
        print(piece, end="", flush=True)
    for found in model.ask_each("What is this?", Path("photos").iterdir()):
        print(found.picture, found.answer or found.error)
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.ask_each import Answered
    from tinyllava_edge.runtimes.async_model import AsyncModel, open_bundle_async
    from tinyllava_edge.runtimes.chat import Chat
    from tinyllava_edge.runtimes.model import Model, open_bundle

    __version__: str

# transformers imports torchao where that is installed, which tells of kernels that other devices would need.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__ = ["Answered", "AsyncModel", "Chat", "Model", "__version__", "open_bundle", "open_bundle_async"]
_ASYNC = ("AsyncModel", "open_bundle_async")


def __getattr__(name: str) -> Any:
    """Import the runtime, or look up the version, only when it is used: `--help` stays quick."""
    if name == "__version__":
        return import_module("importlib.metadata").version("tinyllava-edge")
    if name in __all__:
        where = "async_model" if name in _ASYNC else "model"
        return getattr(import_module(f"tinyllava_edge.runtimes.{where}"), name)
    raise AttributeError(name)


def __dir__() -> list[str]:
    """With what is imported only when it is used."""
    return sorted({*globals(), *__all__})
