"""How much memory a bundle needs on a device, before anything is opened.

Summed from the manifest, the files' sizes, the GGUF header and the shapes inside the vision graph.
docs/deploying.md#what-the-lines-mean says what each line is, and how far from measured ones the sums were.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.errors import UsageError
from tinyllava_edge.gguf_header import GgufHeader, read_gguf_header
from tinyllava_edge.llamacpp_memory import (
    BATCH,
    DEFAULT_KV_TYPE,
    KV_BYTES,
    OUTPUT_ROWS,
    by_layer,
    kv_bytes,
    repacked_bytes,
    scratch_bytes,
    suits_cache,
    tensor_bytes,
)
from tinyllava_edge.onnx_shapes import read_activations

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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a bundle is opened, and how: names of variants, type of the KV cache, positions."""

    vision: str
    language: str
    kv_type: str
    context_length: int

    def flags(self) -> tuple[str, ...]:
        """As a command has them, one for each field."""
        names = ("vision", "language", "kv-type", "context")
        return tuple(f"--{name} {value}" for name, value in zip(names, vars(self).values(), strict=True))

    def options(self) -> str:
        """The same in one text."""
        return " ".join(self.flags())


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
    kv_type = kv_type or DEFAULT_KV_TYPE
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
        language=bundle.variant("language", language, target="gguf").name,
        kv_type=kv_type,
        context_length=context_length or spec.default_context_length,
    )


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
    if language.target != "gguf":
        raise UsageError(f"language {language.name} is {language.target}; only GGUF's memory is known.")
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
    sizes: dict[str, Any] = {"kv_type": setting.kv_type, "context_length": setting.context_length}
    cache = kv_bytes(header, spec, **sizes)
    lines.append(Line("KV cache", cache, place, f"{setting.context_length} positions, {setting.kv_type}"))
    scratch = scratch_bytes(header, spec, **sizes)
    lines.append(Line("llama.cpp scratch", scratch, place, f"{BATCH} rows, {OUTPUT_ROWS} with logits"))
    inner = max(by_layer(header, "feed_forward_length"))
    lines.append(Line("llama.cpp inputs and conversions", 2 * BATCH * inner, place, "of one batch"))
    return MemoryPlan(setting, tuple(lines))


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
    weights, values = _VISION_COPIES.get(vision.precision, (2.0, 4.3))
    inside = _ARENA_LEAST_BYTES + int(values * 4 * max(map(prod, shapes), default=0))
    return [
        Line("vision weights", int(size * weights), "host", "ONNX Runtime's copy of the file's"),
        Line("vision activations", inside, "host", "ONNX Runtime's arena, measured"),
    ]


def _weight_lines(header: GgufHeader, *, gpu: bool, architecture: str) -> list[Line]:
    """A GPU holds everything but the table of tokens, and that too where it is the output's matrix."""
    whole = sum(map(tensor_bytes, header.tensors.values()))
    if gpu:
        table = tensor_bytes(header.tensors["token_embd.weight"])
        own_output = "output.weight" in header.tensors
        return [
            Line("language weights", whole - table * own_output, "gpu", "copied from the file"),
            Line("table of tokens", table, "host", MAPPED),
        ]
    copied = repacked_bytes(header, architecture)
    lines = [Line("language weights", whole, "host", MAPPED)]
    return [*lines, Line("repacked weights", copied, "host", "for the processor")] if copied else lines


@cache
def _header(path: Path) -> GgufHeader:
    return read_gguf_header(path)


@cache
def _activations(path: Path) -> list[tuple[int, ...]]:
    return read_activations(path)
