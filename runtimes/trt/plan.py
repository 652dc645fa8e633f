"""The plan of an engine, read from what TensorRT prints while it builds, and what it must look like.

Without a GPU no engine can be loaded, so its inspector cannot be asked; but a build with a verbose logger
ends with the whole plan: every kernel with the types of what it reads and writes, and the memory. Seen with
TensorRT-RTX 1.7 (docs/sources/tensorrt.md#plans-without-a-gpu).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tinyllava_edge.errors import EnginePlanError

from .binding import LogMessage
from .builder import BuiltEngine
from .fusion import is_fused_attention

# Kernels that multiply matrices: by their type, and the fusions around one ("Fc") by their name.
_GEMM_TYPES = ("gemm", "correlation", "convolution")
_WIDTHS = {"Int8": 8, "FP8": 8, "Half": 16, "BFloat16": 16, "Float": 32}  # bits
_GEMM_FUSION = re.compile(r"__myl_\w*?Fc")
_LAYER = re.compile(
    r"^Name: (?P<name>.+?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[.*?\], TacticName: ",
    re.MULTILINE,
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), .*?Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)[^{]*\}"
)
_IO = re.compile(
    r"^ ?Name: (?P<name>.+?), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+), Dimensions: "
    r"\[(?P<shape>[-\d,]*)\]",
    re.MULTILINE,
)
# TensorRT's name of a type in a network -> in a plan.
_PLAN_TYPES = {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16"}
_NARROW_TYPES = {"HALF", "BF16"}
_MEMORY = {
    "scratch_bytes": "Max Scratch Memory",
    "activation_bytes": "Total Activation Memory",
    "weight_bytes": "Total Weights Memory",
}


@dataclass(frozen=True)
class PlanTensor:
    """What a kernel reads or writes; -1 is the batch, or a multiple of it."""

    name: str
    dtype: str  # as TensorRT spells it: "Half", "Float", "BFloat16", "Int8"
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PlanLayer:
    """One kernel of an engine."""

    name: str
    type: str
    operands: tuple[PlanTensor, ...]  # inputs and constants

    @property
    def is_fused_attention(self) -> bool:
        """Whether it computes a whole attention block."""
        return is_fused_attention(self.name)

    @property
    def is_gemm(self) -> bool:
        """Whether it multiplies matrices, attention not counted."""
        return self.type in _GEMM_TYPES or _GEMM_FUSION.match(self.name) is not None

    @property
    def gemm_type(self) -> str:
        """The type a GEMM multiplies in: the narrowest of its matrices; scalars and biases do not count."""
        matrices = [t.dtype for t in self.operands if len(t.shape) > 1 and abs(prod(t.shape)) > 1]
        # A type that is not known is the widest, so that nothing is taken for narrow.
        return min(matrices, key=lambda dtype: _WIDTHS.get(dtype, 32), default="Float")


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What an engine consists of."""

    layers: tuple[PlanLayer, ...]
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    weight_bytes: int
    activation_bytes: int
    scratch_bytes: int

    @property
    def num_fused_attention(self) -> int:
        """Attention blocks that run as one kernel."""
        return sum(layer.is_fused_attention for layer in self.layers)

    @property
    def gemms(self) -> dict[str, int]:
        """Number of matrix multiplications by the type they multiply in, attention not counted."""
        return dict(Counter(layer.gemm_type for layer in self.layers if layer.is_gemm))

    @property
    def float32_gemms(self) -> tuple[str, ...]:
        """Names of the matrix multiplications in float32."""
        return tuple(x.name for x in self.layers if x.is_gemm and x.gemm_type == "Float")

    def facts(self) -> dict[str, Any]:
        """The figures of a table row, as JSON values."""
        return {
            "fused_attention": self.num_fused_attention,
            "float32_gemms": len(self.float32_gemms),
            "gemms": self.gemms,
            "kernels": len(self.layers),
            "weight_bytes": self.weight_bytes,
            "activation_bytes": self.activation_bytes,
            "scratch_bytes": self.scratch_bytes,
        }


def parse_plan(log: Iterable[LogMessage]) -> EnginePlan:
    """Read the plan from the log of a verbose build.

    Raises:
        EnginePlanError: the log has no plan, or none in the form known.
    """
    messages = [message.text for message in log]
    plans = [text for text in messages if text.startswith("Layers:")]
    if len(plans) != 1:
        raise EnginePlanError(
            f"expected one engine plan in TensorRT's log, found {len(plans)}. Build with verbose=True; this "
            "form is known of TensorRT-RTX 1.7."
        )
    layers_text, _, io_text = plans[0].partition("I/O Tensors:")
    layers = []
    for found in _LAYER.finditer(layers_text):
        operands = _TENSOR.finditer(f"{found['inputs']} {found['constants'] or ''}")
        layers.append(PlanLayer(found["name"], found["type"], tuple(map(_tensor, operands))))
    if len(layers) != len(re.findall(r"^Name: ", layers_text, re.MULTILINE)):
        raise EnginePlanError("the engine plan in TensorRT's log has layers in a form that is not known.")
    io = [(found["mode"], _tensor(found)) for found in _IO.finditer(io_text)]
    return EnginePlan(
        layers=tuple(layers),
        inputs=tuple(tensor for mode, tensor in io if mode == "Input"),
        outputs=tuple(tensor for mode, tensor in io if mode == "Output"),
        **{name: _bytes(messages, label) for name, label in _MEMORY.items()},
    )


def checked_plan_facts(engine: BuiltEngine, islands: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Figures of an engine's plan, once it is what its graph asks for.

    A graph with float16 or bfloat16 in it must have every attention layer (softmax) fused and no matrix
    multiplication in float32, but for the islands that its export kept there; of a float32 graph TensorRT
    fuses none.

    Args:
        engine: of a verbose build.
        islands: each with its `nodes` by name, and whether it is `in_attention`.

    Raises:
        EnginePlanError: it is not; says everything that is wrong.
    """
    plan, facts = parse_plan(engine.log), engine.facts
    faults = []
    if _NARROW_TYPES & set(facts["types"]):
        attention = facts["softmax_layers"] - sum(island["in_attention"] for island in islands)
        if plan.num_fused_attention < attention:
            faults.append(
                f"{plan.num_fused_attention} of {attention} attention layers run as one fused kernel"
            )
        declared = {node for island in islands for node in island["nodes"]}
        kept = sum(name in declared for name in facts["float32_products"])
        excess = plan.float32_gemms
        if len(excess) > kept:
            faults.append(
                f"{len(excess)} matrix multiplications are in float32, expected {kept}; one is {excess[-1]}"
            )
    for what, key, found in (("reads", "inputs", plan.inputs), ("writes", "outputs", plan.outputs)):
        expected = tuple(_plan_tensor(tensor, facts["options"]) for tensor in facts[key])
        if expected != found:
            faults.append(f"it {what} {_shown(found)}, expected {_shown(expected)}")
    if faults:
        raise EnginePlanError(
            f"the engine is not as it must be: {'; '.join(faults)}. Is the graph typed throughout, its "
            "attention in fp16 or bf16 without quantization? Export the variant again."
        )
    return plan.facts()


def _plan_tensor(tensor: dict[str, Any], options: dict[str, Any]) -> PlanTensor:
    """A tensor of a network as it is in a plan, where a profile of one batch size has fixed it."""
    batch, *rest = tensor["shape"]
    if batch < 0 and options["min_batch"] == options["max_batch"]:
        batch = options["max_batch"]
    return PlanTensor(tensor["name"], _PLAN_TYPES.get(tensor["dtype"], tensor["dtype"]), (batch, *rest))


def _tensor(found: "re.Match[str]") -> PlanTensor:
    return PlanTensor(found["name"], found["dtype"], tuple(map(int, filter(None, found["shape"].split(",")))))


def _bytes(messages: Sequence[str], label: str) -> int:
    """The figure of "<label>: 123 bytes", or 0 where TensorRT does not say it."""
    for text in reversed(messages):
        if found := re.match(rf"{label}: (\d+)", text):
            return int(found[1])
    return 0


def _shown(tensors: Sequence[PlanTensor]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors) or "nothing"
