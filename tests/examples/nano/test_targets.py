"""Which directions of a teacher's features are kept."""

import torch

from examples.nano.targets import discriminants, principal_components


def _things_by_artists() -> tuple[torch.Tensor, torch.Tensor]:
    """200 drawings of 20 things: feature 0 says which thing, feature 1 is the artist's style, and larger."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(20).repeat(10)
    rows = 0.1 * torch.randn(200, 6, generator=generator)
    rows[:, 0] += torch.randn(20, generator=generator)[classes]
    rows[:, 1] += 5 * torch.randn(200, generator=generator)
    return rows, classes


def test_principal_components_are_ordered_by_variance() -> None:
    rows, _ = _things_by_artists()
    values = principal_components(rows, 3)(rows)
    assert values.shape == (200, 3)
    assert values.mean(0).abs().max() < 1e-4
    assert values.std(0).tolist() == sorted(values.std(0).tolist(), reverse=True)
    assert torch.corrcoef(torch.stack([values[:, 0], rows[:, 1]]))[0, 1].abs() > 0.99  # style is largest


def test_the_first_discriminant_is_the_thing_and_not_the_style() -> None:
    rows, classes = _things_by_artists()
    first = discriminants(rows, classes, 2)(rows)[:, 0]
    assert torch.corrcoef(torch.stack([first, rows[:, 0]]))[0, 1].abs() > 0.95
    assert torch.corrcoef(torch.stack([first, rows[:, 1]]))[0, 1].abs() < 0.3
