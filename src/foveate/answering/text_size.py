"""Typical height of the text in an image, without a model: whether a small model can read it.

Characters are connected components of pixels that are darker, or lighter, than their surroundings. Their heights give
an estimate that is close enough to tell text of 8 pixels from text of 16, on clean and moderately noisy images.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

#: Difference in brightness (0 to 1) from the mean of the surrounding window of this many pixels.
CONTRAST, WINDOW = 0.16, 63
#: Least and greatest height of a character, in pixels.
SHORTEST, TALLEST = 4, 48
#: Fewest characters that make text.
FEWEST = 3
#: Quantile of the heights: capitals, digits and ascenders, where most small letters are lower.
QUANTILE = 0.75


def text_height(image: Image.Image) -> float | None:
    """Height in pixels of the capitals and digits of most text in an image.

    Args:
        image: an image of any mode.

    Returns:
        The height, or None if there is no text of 4 to 48 pixels with enough contrast.
    """
    gray = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32)) / 255
    mean = gray[None, None]
    for window in ((WINDOW, 1), (1, WINDOW)):  # one axis after the other costs far less than both at once
        padding = (window[0] // 2, window[1] // 2)
        mean = F.avg_pool2d(mean, window, 1, padding, count_include_pad=False)
    mean = mean[0, 0]
    # Text is darker or lighter than its surroundings: of both readings the one with more characters counts.
    heights = max((_heights(mask) for mask in (mean - gray > CONTRAST, gray - mean > CONTRAST)), key=len)
    return float(heights.quantile(QUANTILE)) if len(heights) >= FEWEST else None


def _heights(mask: Tensor) -> Tensor:
    """Heights (n,) of the connected components of a mask (H, W) that may be characters."""
    if not mask.any():
        return torch.zeros(0)
    rows, columns = mask.nonzero(as_tuple=True)
    _, component = _components(mask).unique(return_inverse=True)
    height, width = (_extent(place, component) for place in (rows, columns))
    area = component.bincount()
    filled = area / (height * width)
    character = (height >= SHORTEST) & (height <= TALLEST) & (width >= 0.12 * height) & (width <= 1.6 * height)
    return height[character & (filled >= 0.12) & (filled <= 0.95) & (area >= 6)].float()


def _components(mask: Tensor) -> Tensor:
    """The connected component (n,) of every pixel of a mask (H, W), row-major: the number of its last pixel.

    Neighbours, diagonal ones too, are joined in parallel: in each round the root of one of two neighbours is hooked to
    the other's, and every pixel then points to its root. The number of rounds grows with the logarithm of the pixels.
    """
    number = torch.full(mask.shape, -1).masked_scatter(mask, torch.arange(int(mask.sum())))
    padded = F.pad(number, (1, 1, 0, 1), value=-1)
    inner = padded[:-1, 1:-1]
    pairs = torch.cat([
        torch.stack([inner, other], dim=-1).flatten(0, 1)
        for other in (padded[:-1, 2:], padded[1:, :-2], padded[1:, 1:-1], padded[1:, 2:])
    ])  # fmt: skip
    one, other = pairs[(pairs >= 0).all(dim=-1)].T
    root = torch.arange(int(mask.sum()))
    while True:
        low, high = torch.minimum(root[one], root[other]), torch.maximum(root[one], root[other])
        if torch.equal(low, high):
            return root
        root = root.scatter_reduce(0, low, high, "amax")
        while not torch.equal(root, root[root]):
            root = root[root]


def _extent(place: Tensor, component: Tensor) -> Tensor:
    """Number of rows or columns (n,) from the first to the last pixel of every component."""
    count = int(component.max()) + 1
    ends = [
        torch.zeros(count, dtype=place.dtype).scatter_reduce_(0, component, place, how, include_self=False)
        for how in ("amin", "amax")
    ]
    return ends[1] - ends[0] + 1
