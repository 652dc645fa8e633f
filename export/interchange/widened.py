"""The residual stream of a SigLIP tower in an mmproj file, with room for what llama.cpp's graph cannot do.

Upstream drops token 0 of SigLIP; llama.cpp has no such step and gives every row. So the file has one more
channel that is set at token 0 alone, by its row of the position table, and the connector turns that row into
the embedding of the token in front of the picture, which the chat template then leaves out: the language
model sees upstream's positions exactly.

A wider stream must not change the norms. Whatever is written to it has its mean removed, which no norm sees,
and further channels that are zero change the variance by a known factor, which goes into the norms' weights.
The mean itself, which the connector does see, rides along in two channels, small and of opposite sign.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from tinyllava_edge.checkpoint.config import VisionConfig

Float32 = npt.NDArray[np.float32]
PER_HEAD = 8  # channels: the width of a head stays a multiple of 8
_MEAN = 2.0**-4  # of the mean in its channel; its square is what the variance is off by
_MARK = 2.0**-4  # of token 0
_SHUT = 2.0**14  # times the mark: what pushes every unit of the connector below GELU's zero at token 0
_OPEN = 16.0  # of the one unit that is open there: GELU is the identity, here and in float16


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How tensors that write to the stream, or read from it, lie in the file."""

    hidden: int
    heads: int
    extra: int  # channels for each head, 0 for a tower as it is

    @property
    def width(self) -> int:
        """Channels."""
        return self.hidden + self.heads * self.extra

    @property
    def _head(self) -> int:
        return self.hidden // self.heads

    def epsilon(self, value: float) -> float:
        """A norm's epsilon."""
        return value * self.hidden / self.width

    def write(self, rows: torch.Tensor) -> torch.Tensor:
        """What is added to the stream: [hidden, ...] -> [width, ...]."""
        if not self.extra:
            return rows
        mean = rows.mean(dim=0, keepdim=True)
        rest = rows.new_zeros(self.width - self.hidden - 2, *rows.shape[1:])
        return torch.cat([rows - mean, _MEAN * mean, -_MEAN * mean, rest])

    def positions(self, table: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, width], token 0 marked."""
        rows = self.write(table.T).T.clone()
        if self.extra:
            rows[0, self.hidden + 2], rows[0, self.hidden + 3] = _MARK, -_MARK
        return rows

    def norm(self, vector: torch.Tensor) -> torch.Tensor:
        """A norm's weight [hidden] -> [width]; what it gives in the other channels is zero."""
        return self.read(vector * (self.hidden / self.width) ** 0.5)

    def read(self, columns: torch.Tensor) -> torch.Tensor:
        """What multiplies a normed stream: [..., hidden] -> [..., width]."""
        return pad(columns, (0, self.width - self.hidden))

    def into_heads(self, rows: torch.Tensor) -> torch.Tensor:
        """[heads * head, ...] -> [heads * wider head, ...], the new ones zero."""
        blocks = rows.reshape(self.heads, self._head, *rows.shape[1:])
        new = blocks.new_zeros(self.heads, self.extra, *blocks.shape[2:])
        return torch.cat([blocks, new], dim=1).flatten(0, 1)

    def query_scale(self) -> float:
        """The graph divides by the root of a wider head."""
        return math.sqrt((self._head + self.extra) / self._head)

    def restore(self, rows: Float32) -> Float32:
        """What was written, of the stream's rows [tokens, width]: [tokens, hidden]."""
        if not self.extra:
            return rows
        mean = (rows[:, self.hidden] - rows[:, self.hidden + 1]) / (2 * _MEAN)
        return rows[:, : self.hidden] + mean[:, None]

    def connector(self, layers: list[torch.Tensor], row: torch.Tensor | None) -> list[torch.Tensor]:
        """Weights and biases of two linear layers, whose first reads the stream without a norm.

        Args:
            layers: [inner, hidden], [inner], [out, inner], [out].
            row: [out], in token 0's place, if the stream is wider.
        """
        if row is None:
            return layers
        first, first_bias, second, second_bias = layers
        inner, mean = len(first), first.sum(dim=1) / (2 * _MEAN)
        wide = self.read(first)
        wide[:, self.hidden], wide[:, self.hidden + 1] = mean, -mean
        wide[:, self.hidden + 2] = -_SHUT
        unit = wide.new_zeros(1, self.width)
        unit[0, self.hidden + 2] = _OPEN / _MARK
        column = ((row.double() - second_bias) / _OPEN)[:, None]
        assert inner == len(first_bias)
        return [
            torch.cat([wide, unit]),
            pad(first_bias, (0, 1)),
            torch.cat([second, column], dim=1),
            second_bias,
        ]


def tower_tensors(
    config: VisionConfig, source: Callable[[str], torch.Tensor], stream: Stream
) -> Iterator[tuple[str, torch.Tensor]]:
    """A SigLIP tower's tensors under llama.cpp's names, of the layers that are used.

    Args:
        config: the tower's.
        source: a tensor by upstream's name, in float64 so that nothing is lost where a mean is removed.
        stream: as what they lie in the file.
    """
    embeddings = "vision_model.embeddings"
    yield "v.patch_embd.weight", stream.write(source(f"{embeddings}.patch_embedding.weight"))
    yield "v.patch_embd.bias", stream.write(source(f"{embeddings}.patch_embedding.bias"))
    yield "v.position_embd.weight", stream.positions(source(f"{embeddings}.position_embedding.weight"))
    for layer in range(config.num_used_layers):
        theirs, ours = f"vision_model.encoder.layers.{layer}", f"v.blk.{layer}"
        for number in (1, 2):
            yield f"{ours}.ln{number}.weight", stream.norm(source(f"{theirs}.layer_norm{number}.weight"))
            yield f"{ours}.ln{number}.bias", stream.read(source(f"{theirs}.layer_norm{number}.bias"))
        for letter in "qkv":
            scale = stream.query_scale() if letter == "q" else 1.0
            name = f"{theirs}.self_attn.{letter}_proj"
            weight = stream.read(scale * source(f"{name}.weight"))
            yield f"{ours}.attn_{letter}.weight", stream.into_heads(weight)
            yield f"{ours}.attn_{letter}.bias", stream.into_heads(scale * source(f"{name}.bias"))
        output = stream.write(source(f"{theirs}.self_attn.out_proj.weight"))
        yield f"{ours}.attn_out.weight", stream.into_heads(output.T).T
        yield f"{ours}.attn_out.bias", stream.write(source(f"{theirs}.self_attn.out_proj.bias"))
        yield f"{ours}.ffn_up.weight", stream.read(source(f"{theirs}.mlp.fc1.weight"))
        yield f"{ours}.ffn_up.bias", source(f"{theirs}.mlp.fc1.bias")
        yield f"{ours}.ffn_down.weight", stream.write(source(f"{theirs}.mlp.fc2.weight"))
        yield f"{ours}.ffn_down.bias", stream.write(source(f"{theirs}.mlp.fc2.bias"))
