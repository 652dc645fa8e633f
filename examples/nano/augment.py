"""Random views of pictures, on batches of normalised pixels [batch, 3, height, width] in -1 ... 1."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale, shear, flip, shift and recolour each picture; some get a coloured background.

    The pictures of the nano data lie on white, so what comes in from outside is white too.
    """
    ink = (1 - pixels) / 2  # 0 is white
    grid = F.affine_grid(_affine(len(ink), generator), list(ink.shape), align_corners=False)
    ink = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    light = (1 - _recolour(ink, generator)).clamp(0, 1) * _tint(len(ink), generator)
    return light * 2 - 1


def mix(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Replace half of the pictures by a blend, an overlay or a cut of two: new things for a teacher to judge.

    Source: mixed inputs and long schedules in Beyer et al. 2022, "Knowledge distillation: a good teacher is
    patient and consistent".
    """
    count, size = len(pixels), pixels.shape[-1]
    kind = torch.rand(count, generator=generator)
    other = pixels[torch.randperm(count, generator=generator)]
    share = 0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    before = torch.arange(size) < share * size  # [batch, 1, 1, size]
    mixed = {
        (0.5, 0.7): share * pixels + (1 - share) * other,
        (0.7, 0.8): (pixels + 1) * (other + 1) / 2 - 1,  # both on one white sheet
        (0.8, 0.9): torch.where(before, pixels, other),
        (0.9, 1.0): torch.where(before.transpose(2, 3), pixels, other),
    }
    return _choose(pixels, mixed, kind)


def restyle(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Redraw each picture: outlined, in flat colours, both, in greys, or as lines alone.

    What a thing is does not depend on who drew it. Edges are where a 3x3 neighbourhood is uneven.
    """
    paper = 1 - ((_brightest(pixels) + _brightest(-pixels)).amax(1, keepdim=True) * 1.5 - 0.2).clamp(0, 1)
    shades = 2 + torch.randint(3, (len(pixels), 1, 1, 1), generator=generator)
    smooth = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    flat = ((smooth + 1) / 2 * shades).round() / shades * 2 - 1
    styles = {
        (0.0, 0.3): (pixels + 1) * paper - 1,
        (0.3, 0.6): (flat + 1) * paper - 1,
        (0.6, 0.75): flat,
        (0.75, 0.9): pixels.mean(1, keepdim=True).expand_as(pixels),
        (0.9, 1.0): (2 * paper - 1).expand_as(pixels),
    }
    return _choose(pixels, styles, torch.rand(len(pixels), generator=generator))


def _brightest(pixels: torch.Tensor) -> torch.Tensor:
    """Of every 3x3 neighbourhood; max_pool2d to the bit, and twenty times as fast on a CPU."""
    for dim in (2, 3):
        size = pixels.shape[dim]
        before, after = pixels.narrow(dim, 0, size - 1), pixels.narrow(dim, 1, size - 1)
        pairs = torch.maximum(before, after)
        inner = torch.maximum(pairs.narrow(dim, 0, size - 2), pairs.narrow(dim, 1, size - 2))
        pixels = torch.cat([pairs.narrow(dim, 0, 1), inner, pairs.narrow(dim, size - 2, 1)], dim)
    return pixels


def _choose(
    pixels: torch.Tensor, candidates: Mapping[tuple[float, float], torch.Tensor], kind: torch.Tensor
) -> torch.Tensor:
    """Of each picture the candidate in whose interval its `kind` lies; itself where that is in none."""
    for (low, high), candidate in candidates.items():
        chosen = (kind >= low) & (kind < high)
        pixels = torch.where(chosen[:, None, None, None], candidate, pixels)
    return pixels


def _uniform(low: float, high: float, generator: torch.Generator, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _affine(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, 2, 3]: rotation to 17 degrees, scale, aspect, shear, mirror image, shift."""
    angle = _uniform(-0.3, 0.3, generator, count)
    scale = _uniform(0.75, 1.3, generator, count)
    aspect = torch.exp(_uniform(-0.15, 0.15, generator, count))
    shear = _uniform(-0.15, 0.15, generator, count)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.empty(count, 2, 3)
    matrix[:, 0, 0] = cos * scale * aspect * mirror
    matrix[:, 0, 1] = (shear - sin) * scale
    matrix[:, 1, 0] = sin * scale * mirror
    matrix[:, 1, 1] = cos * scale / aspect
    matrix[:, :, 2] = _uniform(-0.2, 0.2, generator, count, 2)
    return matrix


def _recolour(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mix the channels a little and change the strength; white stays white."""
    count = len(ink)
    channels = torch.eye(3) + _uniform(-0.2, 0.2, generator, count, 3, 3)
    channels = channels / channels.sum(2, keepdim=True)
    strength = _uniform(0.7, 1.3, generator, count, 1, 1, 1)
    return torch.einsum("bij,bjhw->bihw", channels, ink) * strength


def _tint(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, 3, 1, 1]: coloured light on one picture in ten, which colours their background."""
    colour = _uniform(0.5, 1.0, generator, count, 3, 1, 1)
    tinted = torch.rand(count, 1, 1, 1, generator=generator) < 0.1
    return torch.where(tinted, colour, torch.ones(()))
