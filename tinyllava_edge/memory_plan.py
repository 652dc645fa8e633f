"""How much memory a bundle needs on a device, before anything is opened.

Summed from the manifest, the files' sizes, the GGUF header and the shapes inside the vision graph.
docs/deploying.md#what-the-lines-mean says what each line is, and how far from what was measured the sums were.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.errors import UsageError
from tinyllava_edge.gguf_header import TENSOR_TYPES, GgufHeader, Tensor, read_gguf_header
from tinyllava_edge.manifest import LanguageSpec
from tinyllava_edge.onnx_shapes import read_activations

BATCH = 512  # rows of one llama.cpp call, which sizes its working memory by them
OUTPUT_ROWS = 64  # rows whose logits are kept at once: 512 of a vocabulary of 150,000 would be 297 MiB
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}  # of a value of the cache
MIB = 1 << 20
MAPPED = "mapped from the file"

# Measured, by `python -m tools.memory_plan` (benchmarks/results/memory_plan.md), on x86-64 Linux.
_PYTHON_BYTES = 50 * MIB  # Python, numpy, ONNX Runtime and llama.cpp, without a model
_TOKEN_BYTES = 1450  # of both tokenizers, for an entry of the vocabulary
# ONNX Runtime on a CPU, which computes fp16 graphs in float32: weights by the file's size, and what its arena
# grows to by the size of the largest value inside the graph.
_VISION_COPIES = {"fp32": (1.0, 3.2), "fp16": (2.0, 4.3), "int8": (1.25, 3.2)}
_ARENA_LEAST_BYTES = 3 * MIB
# Estimates: no GPU was at hand.
_CUDA_CONTEXT_BYTES = 400 * MIB  # the driver's context, kernels of cuBLAS and of the vision engine
_ENGINE_LEAST_BYTES = 8 * MIB  # activations of nano's engine; larger ones: benchmarks/results/tensorrt
_ENGINE_COPIES, _ENGINE_BATCH = 2.7, 4
# Types whose matrices llama.cpp's CPU build lays out anew, beside the file (ggml/src/ggml-cpu/repack.cpp).
_REPACKED = {
    "x86_64": {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8},
    "aarch64": {"Q4_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8, "IQ4_NL": 4, "Q8_0": 4},
}  # architecture -> type -> rows that a matrix must have a multiple of
_BLOCKS = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a bundle is opened, and how: names of variants, type of the KV cache, positions."""

    vision: str
    language: str
    kv_type: str
    context_length: int

    def options(self) -> str:
        """As a command has it."""
        return (
            f"--vision {self.vision} --language {self.language} --kv-type {self.kv_type} "
            f"--context {self.context_length}"
        )


@dataclass(frozen=True)
class Line:
    """One thing that takes memory; `place` is "host" or "gpu", `note` says where the figure is from.

    What is mapped from a file the system may drop and read again: a device short of memory is then slow.
    """

    name: str
    bytes: int
    place: str
    note: str = ""

    @property
    def is_mapped(self) -> bool:
        """Whether it is pages of a file."""
        return self.note == MAPPED


@dataclass(frozen=True)
class MemoryPlan:
    """What a setting needs."""

    setting: Setting
    lines: tuple[Line, ...]

    @property
    def host_bytes(self) -> int:
        """Of the main memory."""
        return sum(line.bytes for line in self.lines if line.place == "host")

    @property
    def gpu_bytes(self) -> int:
        """Of the GPU's; a Jetson's is the main memory too."""
        return sum(line.bytes for line in self.lines if line.place == "gpu")


def chosen_setting(
    bundle: Bundle,
    *,
    vision: str | None = None,
    language: str | None = None,
    kv_type: str | None = None,
    context_length: int | None = None,
) -> Setting:
    """What would be opened where that is asked for: the most precise verified variants for None.

    Raises:
        BundleError: there is no such variant.
        UsageError: no such type of cache, one that does not suit the model, or a context that is too long.
    """
    spec = bundle.manifest.language
    kv_type = kv_type or "f16"
    if kv_type not in KV_BYTES:
        raise UsageError(f"kv_type is {kv_type!r}; known: {', '.join(KV_BYTES)}.")
    if not suits_cache(spec, kv_type):
        raise UsageError(
            f"a cache of q8_0 needs heads of a multiple of 32 values; this model's have {spec.head_dim}."
        )
    if context_length is not None and not 1 <= context_length <= spec.context_length:
        raise UsageError(
            f"a context of {context_length} positions; the model has 1 to {spec.context_length}."
        )
    return Setting(
        vision=bundle.variant("vision", vision).name,
        language=bundle.variant("language", language).name,
        kv_type=kv_type,
        context_length=context_length or spec.default_context_length,
    )


def suits_cache(spec: LanguageSpec, kv_type: str) -> bool:
    """Whether llama.cpp can keep this model's keys and values so: blocks of q8_0 have 32 values of one head."""
    return kv_type != "q8_0" or spec.head_dim % 32 == 0


def plan_memory(
    bundle: Bundle,
    setting: Setting,
    *,
    gpu: bool,
    architecture: str = "x86_64",
    engine: Mapping[str, Any] | None = None,
) -> MemoryPlan:
    """Sum up what a setting needs.

    Args:
        bundle: opened, so its files are what its manifest says.
        setting: `chosen_setting`'s.
        gpu: whether both parts are computed on a CUDA GPU.
        architecture: of the processor, "x86_64" or "aarch64".
        engine: facts of the TensorRT engine where one was built (`weight_bytes`, `activation_bytes`).
    """
    vision = bundle.variant("vision", setting.vision)
    language = bundle.variant("language", setting.language)
    spec = bundle.manifest.language
    place = "gpu" if gpu else "host"
    lines = [
        Line("Python and libraries", _PYTHON_BYTES, "host", "measured on x86-64"),
        Line("tokenizers", _TOKEN_BYTES * spec.vocab_size, "host", "two, by the vocabulary"),
    ]
    if gpu:
        lines.append(Line("CUDA context and kernels", _CUDA_CONTEXT_BYTES, "gpu", "estimate"))
    lines += _vision_lines(bundle, vision, gpu=gpu, engine=engine)
    header = _header(bundle.path(language.files[0]))
    lines += _weight_lines(header, gpu=gpu, architecture=architecture)
    cache = kv_bytes(header, spec, setting)
    lines.append(Line("KV cache", cache, place, f"{setting.context_length} positions, {setting.kv_type}"))
    scratch = scratch_bytes(header, spec, setting)
    lines.append(Line("llama.cpp scratch", scratch, place, f"{BATCH} rows, {OUTPUT_ROWS} with logits"))
    inner = max(_by_layer(header, "feed_forward_length"))
    lines.append(Line("llama.cpp inputs and conversions", 2 * BATCH * inner, place, "of one batch"))
    return MemoryPlan(setting, tuple(lines))


def kv_bytes(header: GgufHeader, spec: LanguageSpec, setting: Setting) -> int:
    """Keys and values of every layer; llama.cpp rounds the positions up to 256."""
    positions = -(-setting.context_length // 256) * 256
    heads = _by_layer(header, "attention.head_count_kv")
    values = 2 * sum(heads) * (spec.num_hidden_layers if len(heads) == 1 else 1) * spec.head_dim
    return int(positions * values * KV_BYTES[setting.kv_type])


def scratch_bytes(header: GgufHeader, spec: LanguageSpec, setting: Setting) -> int:
    """What llama.cpp reserves for computing one batch: the most that is alive at once, by stage of the graph.

    Without flash attention (f32 cache) the scores of all heads are there at once. Against its own log of 11
    shapes at 3 contexts and 3 types of cache the sum was 0 to 9.4 % higher, never lower.
    """
    rows = min(BATCH, setting.context_length)
    positions = -(-setting.context_length // 256) * 256
    hidden = 4 * rows * spec.hidden_size
    queries = 4 * rows * spec.head_dim * spec.num_attention_heads
    keys = 4 * rows * spec.head_dim * spec.num_key_value_heads
    inner = 4 * rows * max(_by_layer(header, "feed_forward_length"))
    flash = setting.kv_type != "f32"
    mask = rows * positions * (2 if flash else 4)
    scores = 0 if flash else 4 * rows * positions * spec.num_attention_heads
    is_gated = "blk.0.ffn_gate.weight" in header.tensors
    feed_forward = 3 * inner + 4 * hidden if is_gated else inner + 5 * hidden
    outputs = 4 * min(OUTPUT_ROWS, rows) * (spec.vocab_size + 2 * spec.hidden_size)
    attention = scores + 2 * queries + 3 * hidden + 2 * keys
    return max(attention + mask, feed_forward + mask, outputs + 2 * hidden)


def _vision_lines(
    bundle: Bundle, vision: Variant, *, gpu: bool, engine: Mapping[str, Any] | None
) -> list[Line]:
    size = bundle.variant_bytes(vision)
    if engine:
        note = "of the engine built here"
        return [
            Line("vision weights", int(engine["weight_bytes"]), "gpu", note),
            Line("vision activations", int(engine["activation_bytes"]), "gpu", note),
        ]
    shapes = _activations(bundle.path(vision.files[0]))
    if gpu:  # attention is one kernel there, so its scores are nowhere
        largest = max((prod(s) for s in shapes if len(s) < 3), default=0)
        inside = _ENGINE_LEAST_BYTES + int(_ENGINE_COPIES * 2 * largest * _ENGINE_BATCH)
        return [
            Line("vision weights", size, "gpu", "size of the file"),
            Line("vision activations", inside, "gpu", "estimate for a TensorRT engine"),
        ]
    weights, values = _VISION_COPIES.get(vision.name, (2.0, 4.3))
    inside = _ARENA_LEAST_BYTES + int(values * 4 * max(map(prod, shapes), default=0))
    return [
        Line("vision weights", int(size * weights), "host", "ONNX Runtime's copy of the file's"),
        Line("vision activations", inside, "host", "ONNX Runtime's arena, measured"),
    ]


def _weight_lines(header: GgufHeader, *, gpu: bool, architecture: str) -> list[Line]:
    """A GPU holds everything but the table of tokens, and that too where it is the output's matrix."""
    whole = sum(map(_tensor_bytes, header.tensors.values()))
    if gpu:
        table = _tensor_bytes(header.tensors["token_embd.weight"])
        own_output = "output.weight" in header.tensors
        return [
            Line("language weights", whole - table * own_output, "gpu", "copied from the file"),
            Line("table of tokens", table, "host", MAPPED),
        ]
    types = _REPACKED.get(architecture, {})
    skipped = {"token_embd.weight"} if "output.weight" in header.tensors else set()
    copied = sum(
        _tensor_bytes(tensor)
        for name, tensor in header.tensors.items()
        if name not in skipped and tensor.kind in types and tensor.shape[0] % types[tensor.kind] == 0
    )
    lines = [Line("language weights", whole, "host", MAPPED)]
    return [*lines, Line("repacked weights", copied, "host", "for the processor")] if copied else lines


def _tensor_bytes(tensor: Tensor) -> int:
    values, size = _BLOCKS[tensor.kind]
    return prod(tensor.shape) // values * size


def _by_layer(header: GgufHeader, name: str) -> tuple[int, ...]:
    """A number of each layer, or the one that all have."""
    value = header.entries[f"{header.entries['general.architecture'].value}.{name}"].value
    return value if isinstance(value, tuple) else (value,)


@cache
def _header(path: Path) -> GgufHeader:
    return read_gguf_header(path)


@cache
def _activations(path: Path) -> list[tuple[int, ...]]:
    return read_activations(path)
