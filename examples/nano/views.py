"""What the teacher sees, and what of it is worth learning."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from accelerate import Accelerator

from tinyllava_edge.console import progress

from .augment import augment, mix, restyle
from .recipe import Distillation
from .targets import Directions, discriminants, principal_components
from .teacher import Teacher

_TEACHER_BATCH = 64
_TEACHER_CHUNK = 16  # larger ones spend their time on getting memory from the system


@dataclass(frozen=True)
class Drawn:
    """Pictures on white to make views of: those of the data, and others that nobody asks about."""

    pictures: torch.Tensor  # [n, 3, height, width] in -1 ... 1
    things: torch.Tensor  # [n] numbers from 0, the same for pictures of one thing
    unlabelled: torch.Tensor  # [m, 3, height, width] uint8; m may be 0

    def sample(
        self, count: int, unlabelled_share: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random pictures, and which things they show; -1 where nobody says."""
        chosen = torch.randint(len(self.pictures), (count,), generator=generator)
        pictures, things = self.pictures[chosen], self.things[chosen]
        if len(self.unlabelled) == 0:
            return pictures, things
        others = self.unlabelled[torch.randint(len(self.unlabelled), (count,), generator=generator)]
        is_other = torch.rand(count, generator=generator) < unlabelled_share
        pictures = torch.where(is_other[:, None, None, None], others / 127.5 - 1, pictures)
        return pictures, things.masked_fill(is_other, -1)


@dataclass(frozen=True)
class Views:
    """What the teacher has seen and said; the targets' variances are 1 in the mean."""

    pixels: torch.Tensor  # [views, 3, height, width] uint8
    pooled: torch.Tensor  # [views, dimensions]
    patches: torch.Tensor  # [views, side, side, dimensions] float16

    def sample(
        self, how: Distillation, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels in -1 ... 1, pooled and patches of a batch of random views; half are mirrored.

        What is said of a blend of two views is blended as they are (Zhang et al. 2018, "mixup"), so that no
        view can be learned by heart. What is said of a view that is redrawn stays.
        """
        count = how.batch_size
        chosen = torch.randint(len(self.pixels), (count,), generator=generator)
        mirrored = (torch.rand(count, generator=generator) < 0.5)[:, None, None, None]
        pixels, patches = self.pixels[chosen] / 127.5 - 1, self.patches[chosen].float()
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
        patches = torch.where(mirrored, patches.flip(2), patches)
        blended = torch.rand(count, generator=generator) < how.blended_share
        share = 0.5 * torch.rand(count, generator=generator) * blended
        other = torch.randperm(count, generator=generator)
        pooled = self.pooled[chosen]
        pixels = torch.lerp(pixels, pixels[other], share[:, None, None, None])
        redrawn = round(how.redrawn_share * count)  # the views are in random order
        pixels[:redrawn] = restyle(pixels[:redrawn], generator)
        return (
            pixels,
            torch.lerp(pooled, pooled[other], share[:, None]),
            torch.lerp(patches, patches[other], share[:, None, None, None]),
        )


@torch.no_grad()
def look(
    teacher: Teacher,
    drawn: Drawn,
    how: Distillation,
    *,
    side: int,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> Views:
    """Show the teacher random views of the pictures, and keep what it says.

    Args:
        teacher: sees every view at `how.teacher_image_size`.
        drawn: the pictures.
        how: how many views, and how much of what is said is kept.
        side: of the grid of patches that the teacher's own grid is resampled to.
        generator: of the views.
        accelerator: precision of the teacher.
    """
    pixels, pooled, grids, known, shown = [], [], [], [], []
    components: Directions | None = None
    with progress() as bar:
        for start in bar.track(range(0, how.num_views, _TEACHER_BATCH), description="teacher"):
            count = min(_TEACHER_BATCH, how.num_views - start)
            pictures, things = drawn.sample(count, how.unlabelled_share, generator)
            single = augment(pictures, generator)
            is_plain = torch.rand(count, generator=generator) >= how.mixed_share
            batch = torch.where(is_plain[:, None, None, None], single, mix(single, generator))
            seen = ((batch + 1) * 127.5).round().to(torch.uint8)
            features = _features(teacher, seen, how.teacher_image_size, accelerator)
            grid = F.interpolate(features, size=side, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
            if components is None:
                components = principal_components(grid.flatten(0, 2), how.teacher_dimensions)
            pixels.append(seen)
            pooled.append(features.mean((2, 3)).sqrt())  # a ReLU's output; the root tames its long tail
            grids.append(components(grid).half())
            known.append(is_plain & (things >= 0))
            shown.append(things)
    means, patches, named = torch.cat(pooled), torch.cat(grids), torch.cat(known)
    means = discriminants(means[named], torch.cat(shown)[named], how.teacher_dimensions)(means)
    spread = patches[:2048].float().std((0, 1, 2)).mean()
    return Views(torch.cat(pixels), pooled=means / means.std(), patches=(patches / spread).half())


def _features(teacher: Teacher, seen: torch.Tensor, size: int, accelerator: Accelerator) -> torch.Tensor:
    """[batch, features, size / 32, size / 32] of uint8 pixels."""
    large = F.interpolate(seen / 127.5 - 1, size=size, mode="bicubic")
    large = large.contiguous(memory_format=torch.channels_last)
    starts = range(0, len(seen), _TEACHER_CHUNK)
    with accelerator.autocast():
        return torch.cat([teacher(large[i : i + _TEACHER_CHUNK]) for i in starts]).float()
