"""What `import tensorrt_rtx` finds with this folder on the path: the same, and what only RTX has.

FAKE_RTX_COMPILED    a file that gets a line for every engine whose kernels were compiled
"""

import os
from typing import Any

from tests.runtimes.trt import fake_tensorrt as plain
from tests.runtimes.trt.fake_tensorrt import *

__version__ = "1.7.1.116"
CudaGraphStrategy = plain._enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
_KERNELS = b"kernels of "


class IRuntimeCache:
    """Kernels by the engine they are of; those of another GPU it does not take."""

    def __init__(self) -> None:
        self._kernels = b""

    def deserialize(self, blob: Any) -> bool:
        if not bytes(blob).startswith(_KERNELS + str(plain._sm()).encode()):
            return False
        self._kernels = bytes(blob)
        return True

    def serialize(self) -> memoryview:
        return memoryview(self._kernels)


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def __init__(self) -> None:
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class _Context(plain.IExecutionContext):
    _cache: IRuntimeCache | None = None

    def _ran(self) -> None:
        """Compile, unless the kernels are there."""
        if self._cache is not None and self._cache._kernels:
            return
        if log := os.environ.get("FAKE_RTX_COMPILED"):
            with open(log, "a") as file:
                file.write("compiled\n")
        if self._cache is not None:
            self._cache._kernels = _KERNELS + str(plain._sm()).encode()


class _Engine(plain.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> _Context:
        context = _Context(self)
        context.name = runtime_config.cuda_graph_strategy.name if runtime_config else ""
        context._cache = runtime_config._cache if runtime_config else None
        return context


class _Runtime(plain.Runtime):
    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        engine = super().deserialize_cuda_engine(serialized_engine)
        if engine is not None:
            engine.__class__ = _Engine
        return engine


globals().update(Runtime=_Runtime, ICudaEngine=_Engine, IExecutionContext=_Context)
