"""A vision graph as a file: its names, writing it, and running it on the CPU. No torch.

Inputs
    pixels               [batch, 3, image_size, image_size]  float32, batch is dynamic
Outputs
    embeddings           [batch, num_tokens, hidden]         float32, hidden is the language model's
Inner value, listed in the graph's value_info
    vision_tower_output  [batch, tokens, vision_hidden]      between tower and connector, the graph's type
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime

from tinyllava_edge.errors import ExportError
from tinyllava_edge.onnx_check import DOMAINS, OPERATORS
from tinyllava_edge.work_places import temporary_place

TOWER_OUTPUT = "vision_tower_output"
INLINE_LIMIT = 1 << 26  # bytes: a file with its weights inside is read and written as a whole
PAGE = 4096  # bytes: weights that begin at one can be mapped


def write_vision_graph(path: Path, proto: onnx.ModelProto, beside: Path | None = None) -> list[Path]:
    """Write a graph, its weights beside it in one `.data` file where they are large; returns the files.

    `beside`: a graph in the same folder, whose weights of the same name and bytes are not written again.
    """
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= INLINE_LIMIT:
        onnx.save_model(proto, path)
        files = [path]
    else:
        files = [path, *_write_apart(path, proto, beside)]
    onnx.checker.check_model(str(path), full_check=True)
    return files


def _write_apart(path: Path, proto: onnx.ModelProto, beside: Path | None) -> list[Path]:
    """Write the weights apart; onnx's own way to do so needs a second copy of them in memory.

    Returns:
        the files that hold them, the graph's own first.
    """
    apart, known = without_weights(proto), _weights_apart(beside) if beside else {}
    own, other = path.with_name(f"{path.name}.data"), False
    with own.open("wb") as file:
        for tensor in proto.graph.initializer:
            if tensor.ByteSize() < PAGE:
                apart.graph.initializer.append(tensor)
                continue
            place = known.get(tensor.name)
            if place is not None and _holds(path.with_name(place["location"]), place, tensor.raw_data):
                other = True
            else:
                file.seek(-(-file.tell() // PAGE) * PAGE)
                place = {"location": own.name, "offset": str(file.tell())}
                place["length"] = str(file.write(tensor.raw_data))
            pointer = apart.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            pointer.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                pointer.external_data.add(key=key, value=value)
    path.write_bytes(apart.SerializeToString())
    if not own.stat().st_size:
        own.unlink()
    shared = [] if beside is None or not other else [beside.with_name(f"{beside.name}.data")]
    return [data for data in (own, *shared) if data.exists()]


def _weights_apart(path: Path) -> dict[str, dict[str, str]]:
    """Where a written graph's weights lie: name -> location, offset, length."""
    graph = onnx.load(path, load_external_data=False).graph
    found = {tensor.name: {e.key: e.value for e in tensor.external_data} for tensor in graph.initializer}
    return {name: place for name, place in found.items() if place}


def _holds(file: Path, place: Mapping[str, str], content: bytes) -> bool:
    with file.open("rb") as opened:
        opened.seek(int(place["offset"]))
        return int(place["length"]) == len(content) and opened.read(len(content)) == content


def check_domains(proto: onnx.ModelProto) -> None:
    """Refuse a graph that needs operators from elsewhere.

    Raises:
        ExportError: it does; the message names one.
    """
    for node in proto.graph.node:
        if node.domain.encode() not in DOMAINS or node.op_type.encode() not in OPERATORS:
            raise ExportError(
                f"the vision graph needs operator {node.domain}::{node.op_type}, which is none of those "
                "that a bundle may hold (tinyllava_edge/onnx_check.py)."
            )
    if proto.functions:
        raise ExportError(
            f"the vision graph needs the function {proto.functions[0].name}, which is not standard."
        )


@contextmanager
def opened_graph(
    proto: onnx.ModelProto,
    change: Callable[[onnx.GraphProto], None] | None = None,
    *,
    open_file: Callable[[Path], onnxruntime.InferenceSession] | None = None,
) -> Iterator[onnxruntime.InferenceSession]:
    """Open a graph on ONNX Runtime's CPU provider, through a temporary file.

    Args:
        proto: left as it is.
        change: changes nodes and outputs of what is opened; large weights stay in their own file meanwhile.
        open_file: instead of `open_session`.
    """
    with temporary_place() as folder:
        path = folder / "graph.onnx"
        write_vision_graph(path, proto)
        if change is not None:
            without_weights = onnx.load(path, load_external_data=False)
            change(without_weights.graph)
            path.write_bytes(without_weights.SerializeToString())
        yield (open_file or open_session)(path)


@contextmanager
def opened_with(path: Path, value: str) -> Iterator[onnxruntime.InferenceSession]:
    """Open a written graph with an inner value as one more output; its weights stay where they are."""
    proto = onnx.load(path, load_external_data=False)
    give_also(value, proto.graph)
    beside = path.with_name(f".{path.name}")
    try:
        beside.write_bytes(proto.SerializeToString())
        yield open_session(beside)
    finally:
        beside.unlink(missing_ok=True)


def give_also(value: str, graph: onnx.GraphProto) -> None:
    """Make an inner value one more output of a graph."""
    graph.output.extend(known for known in graph.value_info if known.name == value)


def open_session(path: Path, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """Open a graph's file on ONNX Runtime's CPU provider."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # In the order of the file where there is a choice, so that a value is not kept longer than it must be.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of every weight
    # Right on every processor, where int8 sums of some saturate; slower than what runtimes/ort.py does.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:  # the optimizer would take a cast to float16 and back for nothing
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with no initializers."""
    copied = onnx.ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    copied.producer_version = proto.producer_version
    copied.opset_import.extend(proto.opset_import)
    copied.graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(copied.graph, field).extend(getattr(proto.graph, field))
    return copied


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put these nodes in the place of the graph's."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Element type of every input, output and listed inner value."""
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values}
