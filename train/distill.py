"""Stage 0 of nano: the vision tower learns to see from a teacher, without any text.

Patch by patch: the teacher's feature grid is as fine as the tower's grid of patches, and every patch of the
tower's feature layer predicts the principal components of the teacher's features at its place. The mean over
the patches predicts all of the teacher's pooled features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from accelerate import Accelerator
from torch import nn

from tinyllava_edge.console import progress
from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.vision_tower import VisionTower

from .augment import augment, mix
from .loop import TrainingLog, optimise, parameter_groups
from .recipes import Distillation
from .teacher import NUM_FEATURES, STRIDE, Teacher

_TEACHER_BATCH = 64
_TEACHER_CHUNK = 16  # larger ones spend their time on getting memory from the system


@dataclass(frozen=True)
class _Views:
    """What the teacher has seen and said; targets are standardised."""

    pixels: torch.Tensor  # [views, 3, height, width] uint8
    pooled: torch.Tensor  # [views, features]
    patches: torch.Tensor  # [views, side, side, dimensions] float16


def distil(
    tower: VisionTower,
    pictures: torch.Tensor,
    teacher: Teacher,
    how: Distillation,
    *,
    generator: torch.Generator,
    gradient_norm: float,
    accelerator: Accelerator,
    log: TrainingLog,
) -> None:
    """Train `tower` to predict the teacher's features of `pictures` [n, 3, h, w].

    Raises:
        UsageError: the grids of teacher and tower do not coincide.
    """
    side = tower.config.image_size // tower.config.patch_size
    if how.teacher_image_size != side * STRIDE:
        raise UsageError(
            f"teacher_image_size is {how.teacher_image_size}; a tower of {side} patches a side "
            f"needs {side * STRIDE}."
        )
    views = _look(teacher, pictures, how, generator, accelerator)
    hidden = tower.config.hidden_size
    norm = nn.LayerNorm(hidden)
    to_pooled = nn.Linear(hidden, NUM_FEATURES)
    to_patches = nn.Linear(hidden, how.teacher_dimensions)
    heads = nn.ModuleList([norm, to_pooled, to_patches])

    def loss(chosen: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        pixels, patches = views.pixels[chosen], views.patches[chosen].float()
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        patches = torch.where(mirrored[:, None, None, None], patches.flip(2), patches)
        features = norm(run_used_layers(tower, pixels / 127.5 - 1))
        pooled = to_pooled(tower.select(features).mean(1))
        return F.mse_loss(pooled.float(), views.pooled[chosen]) + F.mse_loss(
            to_patches(features).float(), patches.flatten(1, 2)
        )

    def losses() -> Iterator[Callable[[], torch.Tensor]]:
        for _ in range(how.steps):
            chosen = torch.randint(how.num_views, (how.batch_size,), generator=generator)
            mirrored = torch.rand(how.batch_size, generator=generator) < 0.5
            yield partial(loss, chosen, mirrored)

    tower.train()
    optimise(
        "distil",
        parameter_groups([(tower, how.learning_rate), (heads, how.learning_rate)], how.weight_decay),
        losses(),
        num_steps=how.steps,
        warmup_ratio=0.03,
        gradient_norm=gradient_norm,
        accelerator=accelerator,
        log=log,
    )
    tower.eval()


def run_used_layers(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
    """The feature layer of every patch, [batch, patches, hidden], without running the layers behind it."""
    model: Any = tower.model
    model = getattr(model, "vision_model", model)  # transformers 4
    hidden: torch.Tensor = model.embeddings(pixels)
    for layer in model.encoder.layers[: tower.config.num_used_layers]:
        output = layer(hidden, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def _look(
    teacher: Teacher,
    pictures: torch.Tensor,
    how: Distillation,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> _Views:
    """Show the teacher random views of the pictures, and keep what it says."""
    pixels, pooled, grids = [], [], []
    basis: tuple[torch.Tensor, torch.Tensor] | None = None
    with progress() as bar:
        task = bar.add_task("teacher", total=how.num_views)
        for start in range(0, how.num_views, _TEACHER_BATCH):
            count = min(_TEACHER_BATCH, how.num_views - start)
            chosen = torch.randint(len(pictures), (count,), generator=generator)
            batch = mix(augment(pictures[chosen], generator), generator)
            seen = ((batch + 1) * 127.5).round().to(torch.uint8)
            large = F.interpolate(seen / 127.5 - 1, size=how.teacher_image_size, mode="bicubic")
            with accelerator.autocast():
                large = large.contiguous(memory_format=torch.channels_last)
                starts = range(0, count, _TEACHER_CHUNK)
                features = torch.cat([teacher(large[i : i + _TEACHER_CHUNK]) for i in starts])
            grid = features.float().permute(0, 2, 3, 1)  # [batch, side, side, features]
            if basis is None:
                basis = _principal_components(grid.flatten(0, 2), how.teacher_dimensions)
            pixels.append(seen)
            pooled.append(grid.mean((1, 2)))
            grids.append(((grid - basis[0]) @ basis[1]).half())
            bar.advance(task, count)
    means, patches = torch.cat(pooled), torch.cat(grids)
    spread = patches[:2048].float().std((0, 1, 2)).mean()
    return _Views(
        pixels=torch.cat(pixels),
        pooled=(means - means.mean(0)) / (means.std(0) + 0.02),
        patches=(patches / spread).half(),
    )


def _principal_components(rows: torch.Tensor, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [features] and the directions of largest variance [features, dimensions]."""
    mean = rows.mean(0)
    _, _, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    return mean, directions[:dimensions].T
