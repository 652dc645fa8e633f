"""What of a teacher's features is worth learning: few directions, in order of what they say."""

from dataclasses import dataclass

import torch

_COMPONENTS = 256  # that discriminants are made of; fewer than there are rows
_SHRINKAGE = 0.5  # of the scatter within classes, towards a multiple of the identity


@dataclass(frozen=True)
class Directions:
    """A linear map of features: (rows - mean) @ basis."""

    mean: torch.Tensor  # [features]
    basis: torch.Tensor  # [features, dimensions]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., features] -> [..., dimensions]."""
        return (rows - self.mean) @ self.basis


def principal_components(rows: torch.Tensor, dimensions: int) -> Directions:
    """The directions of largest variance of rows [n, features]."""
    mean = rows.mean(0)
    _, _, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    return Directions(mean, directions[:dimensions].T)


def discriminants(rows: torch.Tensor, classes: torch.Tensor, dimensions: int) -> Directions:
    """The directions in which classes differ most, measured in what rows of one class differ by.

    Linear discriminant analysis (Fisher 1936; Rao 1948), with the scatter within classes shrunk as Friedman
    1989 does. Where a class is one thing drawn by several artists, style is what is scaled down.

    Args:
        rows: [n, features].
        classes: [n] numbers from 0.
        dimensions: how many; no more than there are classes less one.
    """
    components = principal_components(rows[:4096], min(_COMPONENTS, len(rows) - 1))
    values = components(rows)
    counts = torch.bincount(classes).clamp(min=1)[:, None]
    means = torch.zeros(len(counts), values.shape[1]).index_add_(0, classes, values) / counts
    within = torch.cov((values - means[classes]).T, correction=0)
    floor = torch.trace(within) / len(within)
    variances, axes = torch.linalg.eigh(within + _SHRINKAGE * floor * torch.eye(len(within)))
    whitening = axes / variances.sqrt()
    between = principal_components((means @ whitening)[torch.bincount(classes) > 0], dimensions)
    return Directions(components.mean, components.basis @ whitening @ between.basis)
