"""Vision tower and connector of a checkpoint, as one ONNX graph (opset 18). Names: `onnx_file.py`.

Holds only the encoder layers that the feature layer needs, and drops token 0 where upstream does. Opset 18
keeps LayerNormalization whole and has no Gelu or Attention op, so that TensorRT 10.3 to 11 read one file
(docs/sources/tensorrt.md#one-graph-for-all-versions). The scale of attention is on the query alone, before
the first product (docs/sources/tensorrt.md#scale-of-attention); torch's own translation spreads it over both.
"""

import ast
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op
from torch import nn

from tinyllava_edge.manifest import EMBEDDINGS, PIXELS
from tinyllava_edge.model.vision_tower import VisionTower
from tinyllava_edge.model.vlm import TinyLlava

from .onnx_file import TOWER_OUTPUT, check_domains

OPSET = 18


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
        proto = _traced(graph, torch.zeros(2, 3, size, size))
    _name_nodes(proto)
    _remove_traces(proto)
    check_domains(proto)
    return proto


def _traced(graph: VisionGraph, pixels: torch.Tensor) -> onnx.ModelProto:
    """Torch's export, of whatever type the model and its pixels have."""
    program = torch.onnx.export(
        graph,
        (pixels,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[PIXELS],
        output_names=[EMBEDDINGS, TOWER_OUTPUT],
        dynamic_shapes={PIXELS: {0: torch.export.Dim("batch", min=1)}},
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: _attention,
            torch.ops.aten.gelu.default: _gelu,
        },
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    _hide_tower_output(proto)
    return proto


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """MatMul-Softmax-MatMul on [batch, heads, rows, width]: `scaled_dot_product_attention` in opset 18."""
    assert (attn_mask, is_causal, enable_gqa) == (None, False, False), "pictures have no mask"
    factor: Any = query.shape[-1] ** -0.5 if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.CastLike(factor, query)), op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _gelu(x: Any, approximate: str = "none") -> Any:
    """GELU with the half on x and not on the sum: the form that ONNX Runtime makes one operator of.

    torch's own translation has x * (0.5 * (1 + ...)), which it leaves in pieces; the values are the same.
    docs/sources/measuring.md#what-onnx-runtime-fuses
    """

    def as_x(number: Any) -> Any:
        return op.CastLike(number, x)

    if approximate == "tanh":
        cube = op.Mul(op.Pow(x, as_x(3.0)), as_x(0.044715))
        inner = op.Tanh(op.Mul(op.Add(x, cube), as_x(math.sqrt(2 / math.pi))))
    else:
        inner = op.Erf(op.Div(x, as_x(math.sqrt(2))))
    return op.Mul(op.Mul(x, as_x(0.5)), op.Add(inner, as_x(1.0)))


def _hide_tower_output(proto: onnx.ModelProto) -> None:
    """Make the tower's output an inner value, with its type kept so that `verify` can tap it."""
    (output,) = [value for value in proto.graph.output if value.name == TOWER_OUTPUT]
    proto.graph.output.remove(output)
    if all(value.name != TOWER_OUTPUT for value in proto.graph.value_info):
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
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (proto, graph, *graph.node, *values):
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
