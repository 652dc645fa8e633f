"""A vision graph's ONNX file -> a TensorRT engine: one code path for TensorRT 10.3 to 11.x and TensorRT-RTX.

The graph's own types decide every precision (docs/sources/tensorrt.md#strong-typing), so no flag does.
Needs TensorRT and the core, neither torch nor onnx: a device builds its engines with it. TensorRT-RTX needs
no GPU to build (`EngineOptions.sms`); TensorRT needs the GPU that the engine is for.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllava_edge.device import read_machine
from tinyllava_edge.errors import EngineBuildError, UnsupportedPrecisionError, UsageError

from .binding import LogMessage, MessageLog, TensorRT, open_tensorrt
from .builder_errors import build_failure, parse_failure
from .options import MIB, EngineOptions
from .timings import load_timings, save_timings

if TYPE_CHECKING:
    import tensorrt as trt

OnProgress = Callable[[str, int, int], None]  # phase, steps done, steps in all
# Precision -> the first compute capability that has it. Source: TensorRT's support matrices.
FIRST_SM = {"BF16": 80, "FP8": 89, "FP4": 100}
JETSON_SMS = (72, 87, 101, 110)


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """An engine in memory.

    Attributes:
        plan: the serialized engine; a view of TensorRT's own memory, so that it is there once.
        facts: what was built with what, for the engine's sidecar; JSON values.
        log: what TensorRT said, with the engine plan where `verbose` was asked for.
    """

    plan: memoryview
    facts: dict[str, Any]
    log: tuple[LogMessage, ...]


def build_engine(
    onnx_path: Path,
    options: EngineOptions,
    on_progress: OnProgress = lambda phase, done, total: None,
    *,
    verbose: bool = False,
) -> BuiltEngine:
    """Build an engine from a typed ONNX file.

    Args:
        onnx_path: a vision graph: one picture input, one embeddings output, both float32.
        options: how.
        on_progress: called with a phase, the steps it has done and how many it has.
        verbose: keep everything TensorRT says, which ends with the engine plan (`plan.parse_plan`).

    Raises:
        MissingExtraError, TensorRTError, TensorRTVersionError: the library is not usable.
        NoGpuError: TensorRT found no usable GPU.
        UsageError: this version does not have an option, or the graph's batch is fixed to another one.
        UnsupportedGraphError: the parser does not know an operator, type or shape; the node is named.
        UnsupportedPrecisionError: the GPU does not have a precision of the graph.
        EngineMemoryError: memory or workspace did not suffice.
        EngineBuildError: anything else; the message has TensorRT's own.
    """
    binding = open_tensorrt(options.target)
    start = time.perf_counter()
    with binding.capture(verbose=verbose) as log:
        builder = binding.create_builder()
        config = builder.create_builder_config()
        network = builder.create_network(1 << int(binding.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        _parse(binding, network, onnx_path, log)
        facts = _network_facts(binding, network)
        _check_precisions(facts, options)
        _add_profile(builder, config, network, options)
        workspace = options.workspace_bytes or default_workspace_bytes()
        _configure(binding, config, options, workspace)
        timings = load_timings(config, options.timing_cache)
        monitor = _progress_monitor(binding, on_progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.interrupted is not None:
            raise monitor.interrupted
        if plan is None:
            raise build_failure(binding, options, workspace, log)
        timings = save_timings(config, options.timing_cache) or timings
    return BuiltEngine(
        plan=memoryview(plan),
        facts={
            **facts,
            "target": options.target,
            "tensorrt": binding.version_text,
            "options": {key: value for key, value in asdict(options).items() if key != "timing_cache"},
            "workspace_bytes": workspace,
            "plan_bytes": plan.nbytes,
            "seconds": time.perf_counter() - start,
            "timings": timings,
            "trtexec": trtexec_line(onnx_path, options, workspace, facts["inputs"]),
        },
        log=tuple(log.messages),
    )


def default_workspace_bytes() -> int:
    """A quarter of the available memory, from 256 MiB to 4 GiB; to 1 GiB on a Jetson.

    Source of the last: allocations over 1 GiB fail there with fragmented contiguous memory (NvMap error 12).
    """
    machine = read_machine()
    quarter = machine.memory.available_bytes // 4 if machine.memory else 0
    largest = (1 if machine.jetson else 4) << 30
    return max(256 * MIB, min(quarter, largest)) // MIB * MIB


def trtexec_line(
    onnx_path: Path, options: EngineOptions, workspace: int, inputs: list[dict[str, Any]]
) -> str:
    """The command of NVIDIA's own tool that builds the same engine.

    `tensorrt_rtx`, the tool of TensorRT-RTX, then builds for its default GPUs.
    """
    tool = "trtexec" if options.target == "tensorrt" else "tensorrt_rtx"
    words = [tool, f"--onnx={onnx_path}", f"--saveEngine={onnx_path.stem}.engine"]
    if options.target == "tensorrt":
        words += ["--stronglyTyped", f"--memPoolSize=workspace:{workspace // MIB}"]
    for picture in inputs:
        if picture["shape"][0] < 0:
            for key in ("min", "opt", "max"):
                shape = [getattr(options, f"{key}_batch"), *picture["shape"][1:]]
                words.append(f"--{key}Shapes={picture['name']}:{'x'.join(map(str, shape))}")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware_compatibility != "none":
        level = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
        words.append(f"--hardwareCompatibilityLevel={level[options.hardware_compatibility]}")
    return " ".join(words)


def _parse(binding: TensorRT, network: "trt.INetworkDefinition", path: Path, log: MessageLog) -> None:
    """Read the ONNX file into the network; external weights lie beside it."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file.")
    parser: trt.OnnxParser = binding.trt.OnnxParser(network, binding.logger)
    if not parser.parse_from_file(str(path)):
        raise parse_failure(binding, parser, path, log)


def _network_facts(binding: TensorRT, network: "trt.INetworkDefinition") -> dict[str, Any]:
    """Inputs and outputs, types, attention blocks (softmax layers), and products in float32 by node name."""
    products = (binding.trt.LayerType.MATRIX_MULTIPLY, binding.trt.LayerType.CONVOLUTION)
    types: set[str] = set()
    float32_products = []
    num_softmax = 0
    for position in range(network.num_layers):
        layer = network.get_layer(position)
        num_softmax += layer.type == binding.trt.LayerType.SOFTMAX
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            types.add(tensor.dtype.name)
            if layer.type in products and tensor.dtype == binding.trt.DataType.FLOAT:
                float32_products.append(layer.name)
    return {
        "inputs": [_tensor_facts(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [_tensor_facts(network.get_output(index)) for index in range(network.num_outputs)],
        "types": sorted(types),
        "softmax_layers": num_softmax,
        "float32_products": float32_products,
    }


def _tensor_facts(tensor: "trt.ITensor") -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}


def _check_precisions(facts: dict[str, Any], options: EngineOptions) -> None:
    sms = options.sms or (() if options.device_sm is None else (options.device_sm,))
    for name, first in FIRST_SM.items():
        lacking = [sm for sm in sms if sm < first]
        if name in facts["types"] and lacking:
            raise UnsupportedPrecisionError(
                f"the graph computes in {name}, which GPUs have from compute capability {first} on; asked "
                f"for is {', '.join(map(str, lacking))}. Build the fp16 or int8_fp16 variant."
            )


def _add_profile(
    builder: "trt.Builder",
    config: "trt.IBuilderConfig",
    network: "trt.INetworkDefinition",
    options: EngineOptions,
) -> None:
    """Set the batches, where the graph leaves the batch open."""
    tensor: trt.ITensor = network.get_input(0)
    batch, *rest = tensor.shape
    if network.num_inputs != 1 or any(size < 1 for size in rest):
        raise EngineBuildError(
            f"expected one picture input with only its batch open, found {network.num_inputs} input(s), the "
            f"first {tensor.name} {list(tensor.shape)}. Export the graph with tinyllava-edge export."
        )
    asked = (options.min_batch, options.opt_batch, options.max_batch)
    if batch >= 1:
        if asked != (batch,) * 3:
            raise UsageError(f"the graph has a fixed batch of {batch}, asked for are {asked}.")
        return
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((size, *rest) for size in asked))
    config.add_optimization_profile(profile)


def _configure(
    binding: TensorRT, config: "trt.IBuilderConfig", options: EngineOptions, workspace: int
) -> None:
    """Set memory, search and compatibility."""
    config.set_memory_pool_limit(binding.trt.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = binding.trt.ProfilingVerbosity.DETAILED
    config.clear_flag(binding.trt.BuilderFlag.TF32)  # a graph in float32 is what is left when float16 differs
    config.max_aux_streams = 0  # one stream: less memory, and a graph that can be captured
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(binding.trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility != "none":
        levels = binding.trt.HardwareCompatibilityLevel
        name = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = _member(binding, levels, name, "hardware compatibility")
    if options.sms:
        config.num_compute_capabilities = len(options.sms)
        for index, sm in enumerate(options.sms):
            config.set_compute_capability(_compute_capability(binding, sm), index)


def _member(binding: TensorRT, enum: Any, name: str, what: str) -> Any:
    """A member of one of TensorRT's enums, which not every version has."""
    members = enum.__members__
    if name not in members:
        known = ", ".join(member.lower() for member in members)
        raise UsageError(f"{binding.name} has no {what} {name.lower()!r}. It has: {known}.")
    return members[name]


def _compute_capability(binding: TensorRT, sm: int) -> Any:
    members = binding.trt.ComputeCapability.__members__
    if f"SM{sm}" not in members:
        known = ", ".join(name[2:] for name in members if name.startswith("SM"))
        jetson = " A Jetson needs --target tensorrt, on the board itself." if sm in JETSON_SMS else ""
        raise UsageError(f"{binding.name} does not build for SM {sm}; it does for {known}.{jetson}")
    return members[f"SM{sm}"]


def _progress_monitor(binding: TensorRT, on_progress: OnProgress) -> Any:
    """TensorRT's progress monitor; what is raised in `on_progress` (Ctrl-C) stops the build, and is kept."""
    base: Any = binding.trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.interrupted: BaseException | None = None
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

        def _report(self, phase: str, done: int) -> None:
            try:
                on_progress(phase, done, self.totals.get(phase, done))
            except BaseException as error:  # must not cross the library's C++ frames
                self.interrupted = error

    return Monitor()
