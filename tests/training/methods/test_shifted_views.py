"""Shifted views of images, and the features that are averaged over them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveate.core.tokens import Grid
from foveate.training.methods.ph_reg import distillation_loss
from foveate.training.methods.shared.shifted_views import averaged, draw_views, farthest_points, shift

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "ph_reg.json").read_text(encoding="utf-8"))["cases"]
GRID = Grid(6, 5)
FILL = torch.tensor([2.0, 3.0, 4.0])


def means(pixels: torch.Tensor) -> torch.Tensor:
    """A tower that sees only its own patch of 2 x 2 pixels: the mean of every channel and the mean of its square."""
    return torch.cat([F.avg_pool2d(values, 2) for values in (pixels, pixels**2)], dim=1).flatten(2).transpose(1, 2)


def placed(pixels: torch.Tensor) -> torch.Tensor:
    """The tower of the golden values: features depend on the place in the grid, and on the pixels within a patch."""
    pixels = pixels.mean(1, keepdim=True)
    columns = torch.arange(pixels.shape[-1])
    mean, weighted = (F.avg_pool2d(values, 2).flatten(1) for values in (pixels, pixels * columns))
    return torch.stack([mean * torch.arange(1, mean.shape[1] + 1), weighted], dim=-1)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def views(count: int, share: float = 0.35, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = [draw_views(GRID, count, share, np.random.default_rng(number)) for number in range(images)]
    shifts, flips = zip(*drawn, strict=True)
    return torch.stack(shifts), torch.stack(flips)


def test_equals_the_authors_code():
    """`utils/denoising.py`, `recover_images` and `utils/loss.py` of 0raiser0/PH-Reg on the tower `placed`.

    Four views of one image of 12 x 12 pixels, sin(0, 1, ...), with patches of 2 pixels, shifts drawn by their
    `prepare_all_offsets` and chosen by their `farthest_point_sample`, flips by their `prepare_flip`.
    """
    pool = np.array(GOLDEN["pool"])
    assert farthest_points(pool, 4, GOLDEN["first"]).tolist() == GOLDEN["chosen"]
    image = torch.arange(3 * 144.0).sin().view(1, 3, 12, 12)
    shifts, flips = torch.tensor([GOLDEN["shifts"]]), torch.tensor([GOLDEN["flips"]])
    output = averaged(placed, image, Grid(6, 6), shifts, flips, FILL)
    torch.testing.assert_close(output.flatten(), torch.tensor(GOLDEN["averaged"]), atol=2e-5, rtol=1e-4)
    ours = distillation_loss(torch.arange(24.0).sin().view(1, 6, 4), torch.arange(24.0).cos().view(1, 6, 4))
    assert float(ours) == pytest.approx(GOLDEN["loss"], abs=1e-5)


def test_shifting_equals_a_loop(pixels):
    shifts, flips = torch.tensor([[2, -3], [-4, 0], [0, 0]]), torch.tensor([True, False, True])
    output = shift(pixels, shifts, flips, FILL)
    for image in range(3):
        for row in range(12):
            for column in range(10):
                source = 9 - column if flips[image] else column
                y, x = row + int(shifts[image, 0]), source + int(shifts[image, 1])
                inside = 0 <= y < 12 and 0 <= x < 10
                expected = pixels[image, :, y, x] if inside else FILL
                assert torch.equal(output[image, :, row, column], expected)


def test_one_view_is_the_plain_tower(pixels):
    assert torch.equal(averaged(placed, pixels, GRID, *views(1), FILL), placed(pixels))


def test_views_without_shift_or_flip_give_the_same_map(pixels):
    shifts, flips = views(5, share=0.0)
    assert not shifts.any()
    output = averaged(placed, pixels, GRID, shifts, torch.zeros_like(flips), FILL)
    torch.testing.assert_close(output, placed(pixels))


def test_what_depends_on_the_patch_alone_does_not_change(pixels):
    """Index maps undo shifts and flips: features of a patch alone come back, and none of what is outside."""
    shifts, flips = views(10)
    assert flips.any() and shifts.unique(dim=1).shape[1] > 3
    torch.testing.assert_close(averaged(means, pixels, GRID, shifts, flips, FILL), means(pixels))


def test_an_artifact_at_a_place_is_divided_by_the_views(pixels):
    """A tower that adds 100 at one place of its grid: after averaging no place has more than a part of it."""
    artifact = torch.zeros(GRID.size, 1)
    artifact[7] = 100
    shifts, flips = views(10)
    rise = averaged(lambda view: means(view) + artifact, pixels, GRID, shifts, flips, FILL) - means(pixels)
    assert float(rise.max()) < 51 and float(rise[:, 7].max()) < 51
    assert float(rise.min()) > -1e-4


def test_drawn_views():
    shifts, flips = views(10, images=20)
    assert not shifts[:, 0].any() and not flips[:, 0].any()  # the first shows the image, so that all of it is covered
    assert shifts[..., 0].abs().max() == round(0.35 * 6) and shifts[..., 1].abs().max() == round(0.35 * 5)
    again, _ = draw_views(GRID, 10, 0.35, np.random.default_rng(3))
    assert torch.equal(again, shifts[3])


def test_chosen_points_are_farthest_in_turn():
    points = np.random.default_rng(0).integers(-9, 9, (30, 2))
    chosen = farthest_points(points, 6, 4).tolist()
    for place in range(1, 6):
        nearest = [min(((point - points[c]) ** 2).sum() for c in chosen[:place]) for point in points]
        assert nearest[chosen[place]] == max(nearest)
    assert chosen[0] == 4
