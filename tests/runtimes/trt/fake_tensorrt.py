"""A TensorRT without a GPU: builds "engines" that hold the ONNX graph, and runs them with ONNX Runtime.

It follows the real rules where our code could break them: names, shapes and addresses must be set, addresses
must be memory of the (fake) device, work is done when the stream is waited for, an engine loads only in the
version and on the compute capability it was built for, failures are None or False with a word in the log.
Every public name is held against the recorded API of the real modules (`test_fake_tensorrt.py`).

    FAKE_TENSORRT_VERSION    what it says it is; 10.3.0 by default
    FAKE_TENSORRT_FAULTS     JSON, graph name -> "nan", "noise", "tiny", "fail" (when run), or a message of
                             the parser or the builder: "parse: <message>", "build: <message>"
    FAKE_TENSORRT_MAPPED     ticks that a run takes longer where it reads the host's memory in place
"""

import ctypes
import enum
import io
import json
import os
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tinyllava_edge.runtimes.trt.cudart_places import LIBRARY_VARIABLE

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")
_MAGIC = b"fake engine\n"
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int64)


def _enum(name: str, members: str) -> Any:
    return enum.IntEnum(name, members, start=0)


class ILogger:
    Severity = _enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        pass


NetworkDefinitionCreationFlag: Any = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM TACTIC_SHARED_MEMORY")
ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
BuilderFlag = _enum("BuilderFlag", "TF32 REFIT VERSION_COMPATIBLE")
HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
LayerType = _enum("LayerType", "CONVOLUTION SOFTMAX MATRIX_MULTIPLY")
DataType = _enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4")
TensorIOMode = _enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = _enum("TensorLocation", "DEVICE HOST")
LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE JSON")
_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.FLOAT8E4M3FN: DataType.FP8,
}


class ITensor:
    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class ILayer:
    def __init__(self, tensors: list[ITensor]) -> None:
        self.name, self.type = "layer", LayerType.CONVOLUTION
        self.num_outputs, self._tensors = len(tensors), tensors

    def get_output(self, index: int) -> ITensor:
        return self._tensors[index]


class INetworkDefinition:
    def __init__(self) -> None:
        self._model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    @property
    def num_layers(self) -> int:
        return 1

    def get_input(self, index: int) -> ITensor:
        return _tensor(self._model.graph.input[index])

    def get_output(self, index: int) -> ITensor:
        return _tensor(self._model.graph.output[index])

    def get_layer(self, index: int) -> ILayer:
        """One layer, which has a tensor of every type in the graph."""
        types = {tensor.data_type for tensor in self._model.graph.initializer} & set(_TYPES)
        return ILayer([ITensor("inner", _TYPES[kind], ()) for kind in sorted(types)])


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shape = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._fits = content in (b"", _timings())

    def serialize(self) -> memoryview:
        return memoryview(_timings())


class IBuilderConfig:
    progress_monitor: Any
    profiling_verbosity: Any
    max_aux_streams: int
    builder_optimization_level: int
    hardware_compatibility_level: Any

    def __init__(self) -> None:
        self._profile: IOptimizationProfile | None = None
        self._workspace = 0

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._workspace = pool_size

    def set_flag(self, flag: Any) -> None:
        pass

    def clear_flag(self, flag: Any) -> None:
        pass

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profile = profile
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        return cache._fits or ignore_mismatch

    def get_timing_cache(self) -> ITimingCache:
        return ITimingCache(b"")


class Builder:
    def __init__(self, logger: Any) -> None:
        _need_gpu(logger)
        self._logger = logger

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
        graph = network._model.graph
        fault = _fault(graph.name)
        if fault.startswith("build: "):
            self._logger.log(ILogger.Severity.ERROR, fault[7:])
            return None
        config.progress_monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            if not config.progress_monitor.step_complete("Building engine", step):
                return None
        config.progress_monitor.phase_finish("Building engine")
        header = {"version": __version__, "sm": _sm(), "profile": config._profile and config._profile._shape}
        plan = _MAGIC + json.dumps(header).encode() + b"\n" + network._model.SerializeToString()
        return np.frombuffer(plan, dtype=np.uint8)  # a buffer with `nbytes`, as IHostMemory


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node"

    def node_operator(self) -> str:
        return "Strange"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        self._network._model = onnx.load(model)
        fault = _fault(self._network._model.graph.name)
        if fault.startswith("parse: "):
            self._errors.append(ParserError(fault[7:]))
        return not self._errors


class Runtime:
    def __init__(self, logger: Any) -> None:
        _need_gpu(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        stream = io.BytesIO(bytes(serialized_engine))
        error = ILogger.Severity.ERROR
        if stream.readline() != _MAGIC:
            self._logger.log(error, "Serialization assertion magicTag failed: magic tag does not match")
            return None
        header = json.loads(stream.readline())
        if header["version"] != __version__ or header["sm"] != _sm():
            self._logger.log(
                error, f"the engine plan file is for {header}, this is {__version__}, SM {_sm()}"
            )
            return None
        return ICudaEngine(stream.read(), header["profile"])


class ICudaEngine:
    device_memory_size_v2 = 1 << 20

    def __init__(self, model: bytes, profile: Any) -> None:
        graph = onnx.load_model_from_string(model).graph
        self._fault = _fault(graph.name)
        self._layers = [node.op_type for node in graph.node]
        self._profile = profile
        self._inputs = [_tensor(value) for value in graph.input]
        self._outputs = [_tensor(value) for value in graph.output]
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index].name

    def get_tensor_mode(self, name: str) -> Any:
        names = [tensor.name for tensor in self._inputs]
        return TensorIOMode.INPUT if name in names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._named(name).dtype

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._named(name).shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return list(self._profile)

    def create_execution_context(self) -> "IExecutionContext":
        return IExecutionContext(self)

    def create_engine_inspector(self) -> "EngineInspector":
        inspector = EngineInspector()
        inspector._layers = self._layers
        return inspector

    def _named(self, name: str) -> ITensor:
        return next(tensor for tensor in (*self._inputs, *self._outputs) if tensor.name == name)


class EngineInspector:
    _layers: list[str]

    def get_engine_information(self, format: Any) -> str:
        """As detailed verbosity has it; attention is one kernel."""
        layers = [
            {
                "Name": f"_gemm_mha_v2_myl0_{n}" if op == "Softmax" else f"__myl_{op}_myl0_{n}",
                "LayerType": "kgen",
            }
            for n, op in enumerate(self._layers)
        ]
        return json.dumps({"Layers": layers, "Bindings": ["pixels", "embeddings"]})


class IExecutionContext:
    name = ""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._runs: dict[int, Any] = {}  # what a recorded graph calls must stay
        self._fake = ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
        self._fake.fake_enqueue.argtypes = (ctypes.c_void_p, _CALLBACK, ctypes.c_int64)
        self._fake.fake_is_device_memory.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._fake.fake_is_mapped.argtypes = (ctypes.c_void_p,)
        self._fake.fake_is_capturing.argtypes = (ctypes.c_void_p,)
        self._has_run = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self._engine._profile
        if not least[0] <= shape[0] <= largest[0] or list(shape[1:]) != least[1:]:
            return False
        self._shapes[name] = tuple(shape)
        self._has_run = False
        return True

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._engine._inputs if tensor.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        batches = [shape[0] for shape in self._shapes.values()] or [-1]
        return (batches[0], *self._engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        names = [tensor.name for tensor in (*self._engine._inputs, *self._engine._outputs)]
        if self._engine._fault == "fail" or self.infer_shapes() or set(self._addresses) != set(names):
            return False
        if self._fake.fake_is_capturing(stream_handle) and not self._has_run:
            return False  # the first run after a change of shapes does work that cannot be recorded
        self._has_run = True
        self._ran()
        shapes = {name: self.get_tensor_shape(name) for name in names}
        for name, shape in shapes.items():
            if not self._fake.fake_is_device_memory(self._addresses[name], 4 * int(np.prod(shape))):
                return False
        call = _CALLBACK(lambda _: self._compute(shapes))
        self._runs[len(self._runs)] = call
        is_mapped = self._fake.fake_is_mapped(self._addresses[names[0]])
        cost = int(os.environ.get("FAKE_TENSORRT_MAPPED", "0")) if is_mapped else 0
        return not self._fake.fake_enqueue(stream_handle, call, cost)

    def _ran(self) -> None:
        """What the first run does beside."""

    def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """What the GPU does: read the addresses, compute, write."""
        values = {name: self._at(name, shapes[name]) for name in shapes}
        inputs = {tensor.name: values[tensor.name] for tensor in self._engine._inputs}
        outputs = [tensor.name for tensor in self._engine._outputs]
        for name, found in zip(outputs, self._engine._session.run(outputs, inputs), strict=True):
            values[name][:] = _spoilt(found, self._engine._fault)

    def _at(self, name: str, shape: tuple[int, ...]) -> Any:
        memory = (ctypes.c_float * int(np.prod(shape))).from_address(self._addresses[name])
        return np.ctypeslib.as_array(memory).reshape(shape)


def _spoilt(found: Any, fault: str) -> Any:
    if fault == "nan":
        found = found.copy()
        found[0, 0, :3] = np.nan
    if fault == "tiny":
        found = found + np.random.default_rng(0).standard_normal(found.shape) * found.std() * 0.011
    if fault == "noise":
        found = found + np.random.default_rng(0).standard_normal(found.shape) * found.std()
    return found


def _tensor(value: Any) -> ITensor:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return ITensor(value.name, _TYPES.get(kind.elem_type, DataType.FLOAT), shape)


def _fault(graph_name: str) -> str:
    return str(json.loads(os.environ.get("FAKE_TENSORRT_FAULTS", "{}")).get(graph_name, ""))


def _timings() -> bytes:
    return f"timings of {__version__}, SM {_sm()}".encode()


def _sm() -> int:
    shown = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
    current = int(ctypes.CDLL(os.environ[LIBRARY_VARIABLE]).fake_current())
    device = int(shown[current]) if shown else current
    return int(os.environ["FAKE_CUDART_GPU"].split(";")[device].split(",")[1])


def _need_gpu(logger: Any) -> None:
    if os.environ["FAKE_CUDART_GPU"] == "none":
        logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")
