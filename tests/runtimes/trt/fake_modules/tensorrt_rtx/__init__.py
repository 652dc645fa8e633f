"""What `import tensorrt_rtx` finds with this folder on the path: the same, and what only RTX has."""

from typing import Any

from tests.runtimes.trt import fake_tensorrt as plain
from tests.runtimes.trt.fake_tensorrt import *

__version__ = "1.7.1.116"
CudaGraphStrategy = plain._enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED


class _Engine(plain.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> plain.IExecutionContext:
        context = super().create_execution_context()
        context.name = runtime_config.cuda_graph_strategy.name if runtime_config else ""
        return context


class _Runtime(plain.Runtime):
    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        engine = super().deserialize_cuda_engine(serialized_engine)
        if engine is not None:
            engine.__class__ = _Engine
        return engine


globals().update(Runtime=_Runtime, ICudaEngine=_Engine)
