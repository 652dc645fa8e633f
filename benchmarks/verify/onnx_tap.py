"""Run a bundle's vision graph with one of its inner values as an output too, on ONNX Runtime's CPU provider.

Needs the onnx package beside the runtime, but no torch, so that a device can look inside as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from tinyllava_edge.export.onnx_file import write_vision_graph
from tinyllava_edge.manifest import PIXELS
from tinyllava_edge.runtimes.ort import PROVIDERS, session_options
from tinyllava_edge.runtimes.threads import thread_budget

Floats = npt.NDArray[np.float32]


@contextmanager
def tapped(path: Path, name: str, threads: int | None) -> Iterator[Callable[[Floats], Floats]]:
    """A function pixels [batch, 3, h, w] -> the value called `name`, float32 whatever the graph has.

    The copy of the graph that has the further output lives in a temporary folder until the end.
    """
    proto = onnx.load(path)
    (value,) = [value for value in proto.graph.value_info if value.name == name]
    proto.graph.output.append(value)
    with TemporaryDirectory(prefix="tinyllava-edge-") as folder:
        copy = Path(folder, "tapped.onnx")
        write_vision_graph(copy, proto)
        del proto
        session = onnxruntime.InferenceSession(
            str(copy), session_options(thread_budget(threads)), providers=PROVIDERS
        )

        def run(pixels: Floats) -> Floats:
            (features,) = session.run([name], {PIXELS: pixels})
            return np.asarray(features, dtype=np.float32)

        yield run
