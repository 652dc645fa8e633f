"""Vision tower and connector of a checkpoint, as one ONNX graph (opset 18).

Inputs
    pixels               [batch, 3, image_size, image_size]  float32, batch is dynamic
Outputs
    embeddings           [batch, num_tokens, hidden]         float32, hidden is the language model's
Inner value, listed in the graph's value_info
    vision_tower_output  [batch, num_tokens, vision_hidden]  float32 or float16: between tower and connector

Holds only the encoder layers that the feature layer needs, and drops token 0 where upstream does. Opset 18
keeps LayerNormalization whole and has no Gelu or Attention op, so that TensorRT 10.3 to 11 read one file
(spec/tensorrt_jetson.md section 2). A float16 graph casts its input and output inside.
"""

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import nn

from tinyllava_edge.errors import ExportError
from tinyllava_edge.model.vision_tower import VisionTower
from tinyllava_edge.model.vlm import TinyLlava

OPSET = 18
PIXELS = "pixels"
EMBEDDINGS = "embeddings"
TOWER_OUTPUT = "vision_tower_output"
INLINE_LIMIT = 1 << 28  # bytes: a file with its weights inside is read and written as a whole
PAGE = 4096  # bytes: weights that begin at one can be mapped
DOMAINS = ("", "ai.onnx")  # the standard operators, of which every runtime has its own


class VisionGraph(nn.Module):
    """Tower and connector with both their outputs, so that both get a name in the graph."""

    def __init__(self, tower: VisionTower, connector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, 3, h, w] -> embeddings [batch, tokens, hidden], features [batch, tokens, vision_hidden]."""
        features = self.tower(pixels)
        # The clone keeps the two apart where the connector is the identity.
        return self.connector(features).clone(), features


def build_vision_graph(model: TinyLlava, size: int) -> onnx.ModelProto:
    """Export a model's tower and connector in float32, for pixels [batch, 3, size, size].

    Raises:
        ExportError: the graph needs an operator that is not a standard one.
    """
    graph = VisionGraph(model.vision_tower.folded(size), model.connector).eval()
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[PIXELS],
            output_names=[EMBEDDINGS, TOWER_OUTPUT],
            dynamic_shapes={PIXELS: {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _hide_tower_output(proto)
    _name_nodes(proto)
    _remove_traces(proto)
    check_domains(proto)
    return proto


def write_vision_graph(path: Path, proto: onnx.ModelProto) -> list[Path]:
    """Write a graph, its weights beside it in one `.data` file where they are large; returns the files."""
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= INLINE_LIMIT:
        onnx.save_model(proto, path)
        files = [path]
    else:
        data = path.with_name(f"{path.name}.data")
        _write_apart(path, data, proto)
        files = [path, data]
    onnx.checker.check_model(str(path), full_check=True)
    return files


def _write_apart(path: Path, data: Path, proto: onnx.ModelProto) -> None:
    """Write the weights to `data`; onnx's own way to do so needs a second copy of them in memory."""
    apart = onnx.ModelProto(ir_version=proto.ir_version, producer_name=proto.producer_name)
    apart.producer_version = proto.producer_version
    apart.opset_import.extend(proto.opset_import)
    apart.graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(apart.graph, field).extend(getattr(proto.graph, field))
    with data.open("wb") as file:
        for tensor in proto.graph.initializer:
            if tensor.ByteSize() < PAGE:
                apart.graph.initializer.append(tensor)
                continue
            file.seek(-(-file.tell() // PAGE) * PAGE)
            place = {"location": data.name, "offset": file.tell(), "length": file.write(tensor.raw_data)}
            pointer = apart.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            pointer.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                pointer.external_data.add(key=key, value=str(value))
    path.write_bytes(apart.SerializeToString())


def check_domains(proto: onnx.ModelProto) -> None:
    """Refuse a graph that needs operators from elsewhere.

    Raises:
        ExportError: it does; the message names one.
    """
    for node in proto.graph.node:
        if node.domain not in DOMAINS:
            raise ExportError(
                f"the vision graph needs operator {node.domain}::{node.op_type}, which is not standard."
            )
    if proto.functions:
        raise ExportError(
            f"the vision graph needs the function {proto.functions[0].name}, which is not standard."
        )


def _hide_tower_output(proto: onnx.ModelProto) -> None:
    """Make the tower's output an inner value, with its type kept so that `verify` can tap it."""
    (output,) = [value for value in proto.graph.output if value.name == TOWER_OUTPUT]
    proto.graph.output.remove(output)
    listed = [value for value in proto.graph.value_info if value.name == TOWER_OUTPUT]
    if not listed:
        proto.graph.value_info.append(output)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Name each node after the module it comes from, which error messages and profilers show."""
    for node in proto.graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        modules = ast.literal_eval(scopes)[:-1] if scopes else [""]
        node.name = f"{modules[-1] or 'graph'}/{node.output[0]}"


def _remove_traces(proto: onnx.ModelProto) -> None:
    """Delete what the exporter notes about this machine: stack traces, paths, its own parameter tables."""
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    graph.name = "vision"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep quiet about what nobody here can mend: no torchvision, and torch calling its own old names."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            old_name = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
            warnings.filterwarnings("ignore", old_name, FutureWarning)
            yield
    finally:
        logger.setLevel(level)
