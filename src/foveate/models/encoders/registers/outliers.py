"""Outlier tokens: few tokens of an image with a much larger norm than the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: A token is an outlier where its norm is above this many times the median of its image.
FACTOR = 3.0


class Outliers(NamedTuple):
    """Outlier tokens of a batch of images.

    Args:
        share: Share of the tokens that are outliers.
        largest: Largest norm divided by the median of the image, mean over images.
    """

    share: float
    largest: float


def norm_outliers(tokens: Tensor, factor: float = FACTOR) -> Outliers:
    """Measure outliers among tokens `(B, N, D)`, taken before the last layer norm.

    Vision transformers need registers (Darcet et al., arXiv 2309.16588) counts tokens of DINOv2 above a norm of 150;
    the median of the image makes the threshold independent of the model.

    Args:
        tokens: Tokens of the patches alone.
        factor: Times the median from which on a token is an outlier.
    """
    norms = torch.linalg.vector_norm(tokens.detach().float(), dim=-1)
    ratios = norms / norms.median(dim=1, keepdim=True).values.clamp(min=torch.finfo(norms.dtype).tiny)
    return Outliers(float((ratios > factor).float().mean()), float(ratios.amax(1).mean()))
