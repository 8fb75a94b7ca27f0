"""Exactness properties of the refined patch embedding, against slow independent references."""

import math

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import FoveateError
from foveate.models.vit_uhd.patch_embedding import resize_matrix, resize_patch_kernel

FILTERS = [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)]
UP = [(8, 16), (10, 14), (3, 7), (1, 4)]
DOWN = [(14, 10), (16, 8), (14, 7), (16, 4), (5, 1)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolve(patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, C, p, p) patches through a patch convolution (D, C, p, p) -> (N, D)."""
    return F.conv2d(patches, weight, stride=weight.shape[-1]).flatten(1)


def resize_one_dimension(source: int, target: int, antialias: bool) -> list[list[float]]:
    """The triangle filter from its definition: pixel centres at i + 1/2, weights normalised at the borders."""
    step = source / target
    width = max(step, 1.0) if antialias else 1.0
    rows = []
    for i in range(target):
        centre = (i + 0.5) * step
        if antialias:
            row = [max(0.0, 1.0 - abs((j + 0.5 - centre) / width)) for j in range(source)]
        else:  # without antialias the border pixel is repeated outwards instead
            row = [0.0] * source
            left = math.floor(centre - 0.5)
            for j in (left, left + 1):
                row[min(max(j, 0), source - 1)] += max(0.0, 1.0 - abs(j + 0.5 - centre))
        rows.append([value / sum(row) for value in row])
    return rows


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("source", "target"), [*UP, *DOWN, (6, 6)])
def test_bilinear_matrix_is_the_triangle_filter_on_both_axes(source: int, target: int, antialias: bool) -> None:
    matrix = resize_matrix(source, target, "bilinear", antialias)
    axis = resize_one_dimension(source, target, antialias)
    assert matrix.shape == (target * target, source * source)
    for row in range(target):
        for column in range(target):
            expected = [a * b for a in axis[row] for b in axis[column]]
            assert matrix[row * target + column].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize(("source", "target"), [*UP, *DOWN])
def test_matrix_is_the_resize(source: int, target: int, mode: str, antialias: bool) -> None:
    matrix = resize_matrix(source, target, mode, antialias)
    patch = random(source, source)
    resized = F.interpolate(patch[None, None], size=(target, target), mode=mode, antialias=antialias)
    torch.testing.assert_close(matrix @ patch.flatten(), resized.flatten(), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.sum(1), torch.ones(target * target, dtype=torch.float64))


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize("method", ["pseudo-inverse", "adjoint"])
def test_same_size_is_the_same_kernel(mode: str, antialias: bool, method: str) -> None:
    weight = random(4, 3, 7, 7)
    resized = resize_patch_kernel(weight, 7, mode=mode, antialias=antialias, method=method)
    assert torch.equal(resized, weight)
    assert resized.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize(("source", "target"), UP)
def test_growing_is_exact(source: int, target: int, mode: str, antialias: bool) -> None:
    weight, patches = random(5, 3, source, source), random(9, 3, source, source, seed=1)
    resized = resize_patch_kernel(weight, target, mode=mode, antialias=antialias)
    magnified = F.interpolate(patches, size=(target, target), mode=mode, antialias=antialias)
    torch.testing.assert_close(convolve(magnified, resized), convolve(patches, weight), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize(("source", "target"), DOWN)
def test_shrinking_is_the_projection(source: int, target: int, mode: str, antialias: bool) -> None:
    """B^T w_new is the projection B^+ B w, and no other kernel comes closer to w."""
    weight = random(4, 2, source, source)
    resized = resize_patch_kernel(weight, target, mode=mode, antialias=antialias)
    matrix = resize_matrix(source, target, mode, antialias)
    flat, new = weight.flatten(2), resized.flatten(2)
    projected = new @ matrix
    # least squares by another road: normal equations instead of a singular value decomposition
    projection = matrix.T @ torch.linalg.solve(matrix @ matrix.T, matrix)
    torch.testing.assert_close(projected, flat @ projection, rtol=0, atol=1e-9)
    torch.testing.assert_close((projected - flat) @ matrix.T, torch.zeros_like(new), rtol=0, atol=1e-9)
    # the response to any patch that a small patch can tell apart is exact
    patches = (random(6, 2, target, target, seed=2).flatten(2) @ matrix).view(6, 2, source, source)
    shrunk = (patches.flatten(2) @ matrix.T).view(6, 2, target, target)
    torch.testing.assert_close(convolve(shrunk, resized), convolve(patches, weight), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize(("source", "target"), [*UP, *DOWN])
def test_adjoint_equals_magnifying_the_patch(source: int, target: int, mode: str, antialias: bool) -> None:
    weight, patches = random(5, 3, source, source), random(9, 3, target, target, seed=1)
    resized = resize_patch_kernel(weight, target, mode=mode, antialias=antialias, method="adjoint")
    magnified = F.interpolate(patches, size=(source, source), mode=mode, antialias=antialias)
    torch.testing.assert_close(convolve(patches, resized), convolve(magnified, weight), rtol=0, atol=1e-10)
    # a flat patch is a flat patch at any size
    torch.testing.assert_close(resized.sum((2, 3)), weight.sum((2, 3)), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_shrinking_reweights_the_kernel_sum_by_about_ten_per_cent(mode: str, antialias: bool) -> None:
    """From 14 to 10 the flat-patch response of a single-tap kernel moves by up to 6-11 %, a smooth one's hardly."""
    taps = torch.eye(14 * 14, dtype=torch.float64).view(-1, 1, 14, 14)
    moved = (resize_patch_kernel(taps, 10, mode=mode, antialias=antialias).sum((1, 2, 3)) - 1).abs().max()
    assert 0.05 < moved < 0.12
    offset = torch.arange(14, dtype=torch.float64) - 6.5
    smooth = torch.exp(-(offset[:, None] ** 2 + offset**2) / 18)[None, None]
    resized = resize_patch_kernel(smooth, 10, mode=mode, antialias=antialias)
    assert resized.sum().item() == pytest.approx(smooth.sum().item(), rel=0.01)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize(("source", "target"), [(14, 10), (10, 14), (16, 8)])
def test_the_definition(source: int, target: int, mode: str, antialias: bool) -> None:
    """(B^T)^+ w with the whole matrix B, which the code never forms."""
    weight = random(4, 2, source, source)
    inverse = torch.linalg.pinv(resize_matrix(source, target, mode, antialias).T)
    resized = resize_patch_kernel(weight, target, mode=mode, antialias=antialias)
    torch.testing.assert_close(resized.flatten(2), weight.flatten(2) @ inverse.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_the_arithmetic_is_double(dtype: torch.dtype) -> None:
    weight = random(4, 3, 14, 14).to(dtype)
    resized = resize_patch_kernel(weight, 10)
    assert resized.dtype == dtype
    assert torch.equal(resized, resize_patch_kernel(weight.double(), 10).to(dtype))


def test_a_parameter_leaves_no_graph_behind() -> None:
    assert not resize_patch_kernel(torch.nn.Parameter(random(2, 3, 4, 4)), 2).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "at least one pixel"),
        ({"size": 8, "mode": "nearest"}, "bilinear, bicubic"),
        ({"size": 8, "method": "average"}, "pseudo-inverse, adjoint"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        resize_patch_kernel(torch.zeros(2, 3, 4, 4), **arguments)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5)])
def test_a_kernel_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FoveateError, match=r"\(D, C, s, s\)"):
        resize_patch_kernel(torch.zeros(shape), 4)
