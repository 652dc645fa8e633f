"""Matrix products as llama.cpp computes them on a GPU, emulated in torch.

Source: docs/sources/measuring.md#products-on-a-gpu. Sums within a step are float32, as inside a tensor core.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor
Product = Callable[[Tensor, Tensor], Tensor]  # [..., n, k], [..., k, m] -> [..., n, m], float32
_TF32_BITS = 13  # of float32's mantissa that TF32 does not have
_aten = torch.ops.aten


def rounded_to_tf32(values: Tensor) -> Tensor:
    """The nearest value with 10 bits of mantissa, halves away from zero (cvt.rna)."""
    half = 1 << (_TF32_BITS - 1)
    return _cut(values.contiguous().view(torch.int32) + half)


def cut_to_tf32(values: Tensor) -> Tensor:
    """10 bits of mantissa, the others left out: what mma.sync makes of float32 that nobody converted."""
    return _cut(values.contiguous().view(torch.int32))


def _cut(bits: Tensor) -> Tensor:
    return (bits >> _TF32_BITS << _TF32_BITS).view(torch.float32)


def float16(values: Tensor) -> Tensor:
    """Values rounded to float16."""
    return values.half().float()


def bfloat16(values: Tensor) -> Tensor:
    """Values rounded to bfloat16."""
    return values.bfloat16().float()


def of_rounded(convert: Callable[[Tensor], Tensor]) -> Product:
    """Both sides converted, sums in float32."""
    return lambda a, b: convert(a) @ convert(b)


def in_float16(step: int) -> Product:
    """Both sides float16, the sum rounded to float16 after every `step` products."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(*a.shape[:-1], b.shape[-1])
        low_a, low_b = float16(a), float16(b)
        pieces = zip(torch.split(low_a, step, dim=-1), torch.split(low_b, step, dim=-2), strict=True)
        for left, right in pieces:
            total = float16(total + left @ right)
        return total

    return product


def with_q8_activations(block: int) -> Product:
    """Activations in 8 bits with one float16 scale a block (block_q8_1), weights as they are."""

    def product(a: Any, b: Tensor) -> Tensor:
        if a.shape[-1] % block:
            plain: Tensor = a @ b
            return plain
        blocks = a.unflatten(-1, (-1, block))
        largest = blocks.abs().amax(dim=-1, keepdim=True)
        codes = torch.round(blocks * (127 / largest).nan_to_num(posinf=0))
        activations: Tensor = (codes * float16(largest / 127)).flatten(-2)
        return activations @ b

    return product


IN_TF32 = of_rounded(cut_to_tf32)


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """One way to compute a language model.

    Attributes:
        name: for people.
        stored: ggml type of the weights; what they cost is in what is compared with, too.
        linear: products with weights.
        attention: products of attention, whose operands are float32 in a ladder.
    """

    name: str
    stored: str
    linear: Product
    attention: Product = IN_TF32


EMULATIONS = (
    Emulation(
        name="tf32, rounded",
        stored="F32",
        linear=of_rounded(rounded_to_tf32),
        attention=of_rounded(rounded_to_tf32),
    ),
    Emulation(name="tf32, cut", stored="F32", linear=IN_TF32),
    Emulation(name="fp16, float32 sums", stored="F16", linear=of_rounded(float16)),
    Emulation(name="fp16, fp16 sums of 16", stored="F16", linear=in_float16(16)),
    Emulation(name="fp16, fp16 sums of 4", stored="F16", linear=in_float16(4)),
    Emulation(name="bf16, float32 sums", stored="BF16", linear=of_rounded(bfloat16)),
    Emulation(name="q8_0, int8 blocks of 32", stored="Q8_0", linear=with_q8_activations(32)),
    Emulation(name="q4_0, int8 blocks of 32", stored="Q4_0", linear=with_q8_activations(32)),
    Emulation(name="q4_0, int8 blocks of 64", stored="Q4_0", linear=with_q8_activations(64)),
    Emulation(name="q8_0, fp16 sums of 4", stored="Q8_0", linear=in_float16(4)),
)


def stored_values(parameters: Sequence[tuple[str, Tensor]], kind: str) -> dict[str, Tensor]:
    """Matrices as a GGUF file of that type holds them; those whose width the type cannot have stay."""
    type_ = gguf.GGMLQuantizationType[kind]
    width = gguf.GGML_QUANT_SIZES[type_][0]
    return {
        name: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(value.numpy(), type_), type_))
        for name, value in parameters
        if value.ndim == 2 and value.shape[1] % width == 0
    }


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, every matrix product is computed by an emulation; all else stays float32."""

    def __init__(self, emulation: Emulation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        linear, attention = emulation.linear, emulation.attention
        self._replaced: dict[Any, Callable[..., Tensor]] = {
            _aten.mm.default: linear,
            _aten.addmm.default: lambda bias, a, b: linear(a, b) + bias,
            _aten.bmm.default: attention,
        }
        self._plain = sdpa_kernel(SDPBackend.MATH)  # attention as two products and a softmax
        self.replaced = 0

    def __enter__(self) -> Any:
        self._plain.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._plain.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation: a product is replaced, and one that has no replacement is refused."""
        if (replacement := self._replaced.get(func)) is not None:
            self.replaced += 1
            return replacement(*args)
        name = func.overloadpacket.__name__
        assert not {"mm", "linear", "matmul", "convolution", "attention"} & set(name.split("_")), func
        return func(*args, **(kwargs or {}))
