"""Vision tower and connector -> `mmproj.gguf`, for llama.cpp's own multimodal programs.

Keys and tensor names: llama.cpp, tools/mtmd/clip.cpp and clip-impl.h (docs/sources/llamacpp.md#mmproj). Its
graph cannot drop a token, has no linear connector, and pads pictures in its own colour; what the file does
about each is in docs/interchange.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.errors import UnsupportedModelError
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.model.vlm import TinyLlava

from .widened import PER_HEAD, Stream, tower_tensors

_MLP = re.compile(r"mlp([12])x_gelu")
_GELU_TANH = ("gelu_pytorch_tanh", "gelu")  # ggml has the one with tanh; the exact one differs by up to 5e-4
_BICUBIC = 3
_JANUS_GREY = 127
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MmprojSource:
    """A model, and what its mmproj file says besides the weights.

    Attributes:
        row: [hidden of the language model], in the place of the token that upstream drops; None keeps it.
    """

    model: TinyLlava
    preprocessing: Preprocessing
    name: str
    row: Floats | None

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's."""
        return self.model.config


def check_mmproj(config: ModelConfig, preprocessing: Preprocessing) -> None:
    """Find what llama.cpp's graph cannot compute, before any work is done.

    Raises:
        UnsupportedModelError: a tower, connector or preprocessing that it has not; the message says what is.
    """
    tower = config.vision
    instead = "Export a bundle without --interchange mmproj; our runtimes compute it."
    if tower.architecture == "clip_vision_model":
        raise UnsupportedModelError(
            "--interchange mmproj: a CLIP tower. llama.cpp puts the class token behind the patches and then "
            f"drops the first patch (its issue 25814), and no file can say otherwise. {instead}"
        )
    if tower.architecture != "siglip_vision_model" or config.second_vision is not None:
        name = "a mixture of towers" if config.second_vision is not None else tower.architecture
        raise UnsupportedModelError(
            f"--interchange mmproj: llama.cpp has no graph for {name}, only for SigLIP and CLIP. {instead}"
        )
    if config.connector.type not in ("linear", "identity") and not _MLP.fullmatch(config.connector.type):
        raise UnsupportedModelError(
            f"--interchange mmproj: llama.cpp has no connector {config.connector.type!r}; its graph computes "
            f"identity, linear, mlp1x_gelu and mlp2x_gelu. {instead}"
        )
    if tower.hidden_act not in _GELU_TANH:
        raise UnsupportedModelError(
            f"--interchange mmproj: vision_config.hidden_act is {tower.hidden_act!r}; of a SigLIP tower "
            f"llama.cpp computes {_GELU_TANH[0]}. {instead}"
        )
    if preprocessing.crop is not None or preprocessing.resample != _BICUBIC:
        raise UnsupportedModelError(
            "--interchange mmproj: llama.cpp resizes a SigLIP tower's picture with the bicubic filter and "
            f"crops nothing; this checkpoint's processor has {preprocessing}. {instead}"
        )


def write_mmproj(path: Path, source: MmprojSource, float_type: str = "f16") -> None:
    """Write the file.

    Args:
        path: written.
        source: of `check_mmproj`'s kinds.
        float_type: of the tower's matrices, "f32" or "f16"; the connector's are always float32.
    """
    tower = source.config.vision
    extra = 0 if source.row is None else PER_HEAD
    stream = Stream(hidden=tower.hidden_size, heads=tower.num_attention_heads, extra=extra)
    writer = gguf.GGUFWriter(path, "clip")
    _add_metadata(writer, source, stream, float_type)
    for name, tensor in _tensors(source, stream):  # only to know the shapes: one at a time is in memory
        dtype = _dtype(name, tensor, float_type)
        writer.add_tensor_info(name, tuple(tensor.shape), dtype, tensor.numel() * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(source, stream):
        writer.write_tensor_data(tensor.contiguous().numpy().astype(_dtype(name, tensor, float_type)))
    writer.close()


def _dtype(name: str, tensor: torch.Tensor, float_type: str) -> np.dtype[np.floating]:
    """The table of positions is added, which llama.cpp wants in float32."""
    half = float_type == "f16" and tensor.dim() > 1 and name.startswith("v.") and "position" not in name
    return np.dtype(np.float16 if half else np.float32)


def _add_metadata(writer: gguf.GGUFWriter, source: MmprojSource, stream: Stream, float_type: str) -> None:
    tower, how = source.config.vision, source.preprocessing
    writer.add_type("mmproj")
    writer.add_name(source.name)
    is_half = float_type == "f16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("janus_pro" if _pads_grey(how) else "mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(how.image_size)
    writer.add_vision_patch_size(tower.patch_size)
    writer.add_vision_embedding_length(stream.width)
    writer.add_vision_feed_forward_length(tower.intermediate_size)
    writer.add_vision_block_count(tower.num_used_layers)
    # Without it, llama.cpp runs a layer less than there are (its issue 25817).
    writer.add_array("clip.vision.feature_layer", [tower.num_used_layers])
    writer.add_vision_projection_dim(source.config.language.hidden_size)
    writer.add_vision_head_count(tower.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(stream.epsilon(tower.layer_norm_eps))
    writer.add_vision_image_mean(list(how.mean))
    writer.add_vision_image_std(list(how.std))
    if how.aspect == "square":
        # A picture in tiles of no size has its overview alone, which is the one that is not padded.
        writer.add_array("clip.vision.image_grid_pinpoints", [0, 0])


def _tensors(source: MmprojSource, stream: Stream) -> Iterator[tuple[str, torch.Tensor]]:
    model = source.model
    tower = dict(model.vision_tower.upstream_items())
    yield from tower_tensors(source.config.vision, lambda name: tower[name].detach().double(), stream)
    row = None if source.row is None else torch.from_numpy(source.row)
    layers = stream.connector(_two_layers(source), row)
    second = 1 if _pads_grey(source.preprocessing) else 2  # Janus' and LLaVA's names
    names = ("mm.0.weight", "mm.0.bias", f"mm.{second}.weight", f"mm.{second}.bias")
    yield from zip(names, layers, strict=True)


def _two_layers(source: MmprojSource) -> list[torch.Tensor]:
    """The connector as linear, GELU, linear: GELU(x) - GELU(-x) is x, for one that has no GELU."""
    values = [value.detach().double() for value in source.model.connector.parameters()]
    if len(values) == 4:
        return values
    hidden = source.config.language.hidden_size
    weight, bias = values or [torch.eye(hidden).double(), torch.zeros(hidden).double()]
    both = torch.eye(len(bias)).double()
    return [
        torch.cat([weight, -weight]),
        torch.cat([bias, -bias]),
        torch.cat([both, -both], dim=1),
        torch.zeros_like(bias),
    ]


def _pads_grey(how: Preprocessing) -> bool:
    """Whether Janus' colour of padding is this processor's; that of LLaVA, CLIP's mean, is hard-wired."""
    return how.aspect == "pad" and all(int(255 * value) == _JANUS_GREY for value in how.mean)
