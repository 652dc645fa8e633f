"""The least time that each stage of a row could take on this machine, from what it must compute and read.

Multiply-adds come from the shapes in the vision graph and in the GGUF header, bytes from the header too,
rates from `roofline.py`. docs/measuring.md#roofline has the definitions.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from tinyllava_edge.benchmarks.evals.cell import Cell
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.gguf_header import GgufHeader, read_gguf_header
from tinyllava_edge.llamacpp_memory import DEFAULT_KV_TYPE, KV_BYTES, by_layer, tensor_bytes
from tinyllava_edge.onnx_shapes import product_flops
from tinyllava_edge.runtimes.registry import runtime_entries

Record = dict[str, Any]
_FLOAT32_BYTES = 4
_TABLE, _HEAD = "token_embd.weight", "output.weight"
_FLOATS = {"f32": "fp32", "f16": "fp32", "bf16": "bf16"}  # what a CPU multiplies these with; others: int8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one request must do, whoever does it.

    Attributes:
        vision_flops: of one picture, tower and connector; None where the graph does not state its shapes.
        vision_bytes: of the graph's weights in its file.
        block_values: weights that every position is multiplied with.
        head_values: weights that make logits of one position.
        token_bytes: weights that one token reads.
        kv_values: keys and values of one position, all layers.
        attention_flops: of one position for each position that it sees, all layers.
    """

    vision_flops: int | None
    vision_bytes: int
    block_values: int
    head_values: int
    token_bytes: int
    kv_values: int
    attention_flops: int

    def prefill_flops(self, positions: int) -> int:
        """Of so many positions from nothing, each seeing itself and those before it; one makes logits."""
        attention = self.attention_flops * positions * (positions + 1) // 2
        return 2 * (self.block_values * positions + self.head_values) + attention

    def token_flops(self, positions: float) -> float:
        """Of one token behind so many positions."""
        return 2 * (self.block_values + self.head_values) + self.attention_flops * positions

    def bytes_per_token(self, positions: float, kv_bytes: float) -> float:
        """Read for one token behind so many positions, with a cache of so many bytes a value."""
        return self.token_bytes + positions * self.kv_values * kv_bytes


def read_work(cell: Cell, bundle: Bundle) -> Work:
    """The work of a cell's variants; a checkpoint's is that of the bundle's model in float32."""
    header = _header(cell, bundle)
    spec = bundle.manifest.language
    head = _HEAD if _HEAD in header.tensors else _TABLE  # tied
    matrices = {n: t for n, t in header.tensors.items() if n.startswith("blk.") and len(t.shape) == 2}
    read = {n: t for n, t in header.tensors.items() if n == head or n not in (_TABLE, _HEAD)}
    values = sum(prod(tensor.shape) for tensor in read.values())
    in_file = cell.options.checkpoint is None
    heads = by_layer(header, "attention.head_count_kv")
    kv_heads = sum(heads) * (spec.num_hidden_layers if len(heads) == 1 else 1)
    vision = bundle.variant("vision", cell.options.vision)
    return Work(
        vision_flops=product_flops(bundle.path(vision.files[0])) if vision.target == "onnx" else None,
        vision_bytes=sum(bundle.path(name).stat().st_size for name in vision.files),
        block_values=sum(prod(tensor.shape) for tensor in matrices.values()),
        head_values=prod(header.tensors[head].shape),
        token_bytes=sum(map(tensor_bytes, read.values())) if in_file else _FLOAT32_BYTES * values,
        kv_values=2 * kv_heads * spec.head_dim,
        # Scores and their sum over values: a multiply-add each, for every head.
        attention_flops=4 * spec.num_hidden_layers * spec.num_attention_heads * spec.head_dim,
    )


def _header(cell: Cell, bundle: Bundle) -> GgufHeader:
    """Of the cell's own variant, or of any where its runtime reads no GGUF: all have the same shapes."""
    variants = [v for v in bundle.manifest.variants if v.part == "language" and v.target == "gguf"]
    own = [variant for variant in variants if variant.name == cell.options.language]
    return read_gguf_header(bundle.path((own or variants)[0].files[0]))


def types_of(cell: Cell) -> tuple[str, str]:
    """What vision and prefill multiply in on a CPU: fp16 graphs in float32, quantized files in int8."""
    vision, language = cell.options.vision, cell.options.language
    return (
        "int8" if vision is not None and vision.startswith("int8") else "fp32",
        "fp32" if language is None else _FLOATS.get(language, "int8"),
    )


def floors_of(cell: Cell, bundle: Bundle, warm: Record, roof: Record | None) -> Record | None:
    """Floors of a row's stages and how much of its time each is; None of one that computes on a GPU.

    Args:
        cell: the row.
        bundle: its model.
        warm: its figures with nothing cached.
        roof: what `roofline.measure_roof` found, or None.
    """
    if roof is None or any(entry.needs_gpu for entry in runtime_entries(cell.runtime)):
        return None
    work, (vision_type, language_type) = read_work(cell, bundle), types_of(cell)
    kv_bytes = (
        _FLOAT32_BYTES if cell.options.language is None else KV_BYTES[cell.options.kv_type or DEFAULT_KV_TYPE]
    )
    positions = warm["prompt_tokens"] + warm["tokens"] / 2
    read = work.bytes_per_token(positions, kv_bytes)
    stages, rates = warm["stages_ms"], roof["gflops"]
    prefill = work.prefill_flops(warm["prompt_tokens"])
    return {
        "vision": _floor(work.vision_flops, vision_type, rates, stages["vision"], work.vision_bytes),
        "prefill": _floor(prefill, language_type, rates, stages["prefill"], work.token_bytes),
        "token": {
            "flops": round(work.token_flops(positions)),
            "bytes": round(read),
            "ms": (floor := read / roof["read_gb_per_s"] / 1e6),
            "share": floor / warm["token_ms"],
        },
    }


def _floor(flops: int | None, kind: str, rates: Record, took_ms: float | None, read: int) -> Record | None:
    """Of a product in one type, or in float32 where this machine's rate in it is not known."""
    kind = kind if rates.get(kind) else "fp32"
    if flops is None or not rates.get(kind):
        return None
    floor = flops / rates[kind] / 1e6
    share = None if not took_ms else floor / took_ms
    return {"flops": flops, "bytes": read, "type": kind, "ms": floor, "share": share}
