"""Views of pictures: range, repeatability, shares."""

import torch

from examples.nano.augment import augment, mix, restyle


def _squares() -> torch.Tensor:
    pixels = torch.ones(64, 3, 32, 32)
    pixels[:, :, 8:24, 8:24] = torch.linspace(-1, 0.5, 64)[:, None, None, None]
    return pixels


def test_views_stay_in_range_keep_their_shape_and_follow_the_seed() -> None:
    pixels = _squares()
    views = mix(augment(pixels, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2))
    again = mix(augment(pixels, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2))
    assert views.shape == pixels.shape
    assert views.min() >= -1
    assert views.max() <= 1
    assert torch.equal(views, again)
    assert not torch.equal(views, augment(pixels, torch.Generator().manual_seed(3)))


def test_about_nine_pictures_in_ten_keep_a_white_background() -> None:
    blank = torch.ones(1000, 3, 8, 8)
    white = (augment(blank, torch.Generator().manual_seed(0)) == 1).all(dim=(1, 2, 3))
    assert 0.87 < white.float().mean() < 0.93


def test_half_of_the_pictures_are_mixed() -> None:
    pixels = torch.linspace(-1, 1, 1000)[:, None, None, None].expand(1000, 3, 8, 8)
    kept = (mix(pixels, torch.Generator().manual_seed(0)) == pixels).all(dim=(1, 2, 3))
    assert 0.45 < kept.float().mean() < 0.55


def test_redrawn_pictures_keep_white_sheets_white_and_put_dark_lines_at_edges() -> None:
    generator = torch.Generator().manual_seed(0)
    assert restyle(torch.ones(64, 3, 16, 16), generator).eq(1).all()
    pixels = torch.ones(200, 3, 32, 32)
    pixels[:, 0, 8:24, 8:24] = -1  # cyan
    drawn = restyle(pixels, generator)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    outlined = drawn[:, :, 16, 8].eq(-1).all(1)  # on the edge
    assert 0.6 < outlined.float().mean() < 0.8
    greys = (drawn.amax(1) == drawn.amin(1)).flatten(1).all(1)
    assert 0.15 < greys.float().mean() < 0.35
