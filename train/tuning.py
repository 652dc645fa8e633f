"""What of a model is trained, and in what arithmetic."""

import os
import re

import torch
from torch import nn

from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.vlm import TinyLlava

from .lora import add_lora, load_adapter
from .options import FinetuneOptions
from .quantized import quantize

DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of torch, by Accelerate's names
# What `accelerate launch` told this process; a run writes its own there for the library.
_LAUNCHED = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
_LAYER = re.compile(r"\.layers?\.(\d+)\.")


def choose_trained(model: TinyLlava, options: FinetuneOptions) -> None:
    """Freeze all but what is trained, and put low-rank updates and fake quantization in.

    Raises:
        UsageError: that is nothing.
    """
    model.requires_grad_(False)
    if options.has_lora:
        if options.has_qlora:
            precision = arithmetic(options)
            quantize(model.language_model, getattr(torch, DTYPES[precision]))
        adapted = add_lora(model, options.lora_parts, options.lora)
        if options.adapter is not None:
            load_adapter(adapted, options.adapter)
    _tune_in_full(model, options)
    if options.training.quantize_aware:
        from .quantize_aware import prepare  # needs torchao

        prepare(model, options.training.quantize_aware)
    if not _learns(model):
        raise UsageError(f"nothing to train: {', '.join(options.tune)} has no weights in this checkpoint.")


def _tune_in_full(model: TinyLlava, options: FinetuneOptions) -> None:
    for part, tuning in options.tune.items():
        if tuning.how == "full":
            for name, parameter in model.get_submodule(part).named_parameters():
                layer = _LAYER.search(f".{name}")
                if tuning.from_layer is None or (layer and int(layer[1]) >= tuning.from_layer):
                    parameter.requires_grad_(True)
        if tuning.from_layer is not None and not _learns(model.get_submodule(part)):
            raise UsageError(
                f"the {part} has no layer {tuning.from_layer}, from which on it is to be trained."
            )


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def keep_frozen_in(model: TinyLlava, dtype: torch.dtype) -> None:
    """Keep what is not trained in 16 bits; what is trained stays in float32, and so do buffers."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():  # not what is in 4 bits
            parameter.data = parameter.data.to(dtype)


def uses_fsdp(options: FinetuneOptions) -> bool:
    """Whether the model is sharded by FSDP, asked for here or of `accelerate launch`."""
    return options.training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def arithmetic(options: FinetuneOptions) -> str:
    """Accelerate's name of the arithmetic; auto is bf16 where the GPU, or else the CPU, computes in it.

    Raises:
        UsageError: bf16 is asked for of a GPU that would only imitate it (compute capability below 8.0), or
            fp16 without one.
    """
    wanted = options.training.precision
    if wanted == "auto":
        wanted = {"bf16": "bf16", "fp16": "fp16"}.get(_LAUNCHED, wanted)  # type: ignore[assignment]
    if not torch.cuda.is_available():
        cpu = torch.cpu.get_capabilities()
        has_bf16 = bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
        if wanted == "fp16":
            raise UsageError("--precision fp16: training in it needs a GPU. Give bf16 or fp32.")
    else:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted == "bf16" and not has_bf16:
            raise UsageError(
                f"--precision bf16: {torch.cuda.get_device_name()} does not compute in it (8.0 and newer "
                "do). Give fp16 or fp32, or leave it to auto."
            )
    if wanted == "auto":
        return "bf16" if has_bf16 else "no"
    return "no" if wanted == "fp32" else wanted
