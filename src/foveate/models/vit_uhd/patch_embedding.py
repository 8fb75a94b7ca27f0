"""Refined patch embedding: carry a pretrained patch kernel to another patch size.

A patch embedding is an inner product ``<x, w>`` between a patch ``x`` of ``s x s`` pixels and a kernel ``w`` of the
same size. LLaVA-UHD v3 (arXiv 2511.21150) gives a pretrained ViT smaller patches, once and offline, with the resize of
FlexiViT (arXiv 2212.08013): let ``B`` (t*t, s*s) be the linear map that resizes a patch from ``s`` to ``t`` pixels;
the new kernel is the least-squares solution of ``<Bx, w_new> = <x, w>`` for all patches ``x``,

    w_new = (B^T)^+ w,        with ^+ the Moore-Penrose inverse.

What this keeps depends on the direction:

* ``t > s``: ``B`` loses nothing, the equality is exact;
* ``t = s``: ``B`` is the identity, the kernel is returned unchanged;
* ``t < s``: ``B`` loses detail, ``B^T w_new`` is the orthogonal projection of ``w`` on what a ``t x t`` patch can still
  tell apart. The sum of the kernel (its answer to a flat patch) is then not exactly kept either: from 14 to 10 pixels
  each tap is re-weighted by 0.89 to 1.11, which smooth kernels average out to a fraction of a per cent.

The adjoint method answers another question: ``w_new = U^T w``, with ``U`` the resize from ``t`` to ``s``, responds to
a small patch exactly as ``w`` responds to that patch magnified to ``s x s``, for any two sizes, flat patches included.

Neither the paper nor anything released states the interpolation that was used, so it is a parameter here. FlexiViT's
own resize is bilinear and antialiased, which is the default.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError

ResizeMode = Literal["bilinear", "bicubic"]
KernelResize = Literal["pseudo-inverse", "adjoint"]


def resize_matrix(source: int, target: int, mode: ResizeMode = "bilinear", antialias: bool = True) -> Tensor:
    """The matrix of the linear map that resizes a square patch.

    ``resize_matrix(s, t) @ patch.flatten()`` is ``patch`` (s, s) resized to (t, t) and flattened row by row, with
    pixel areas aligned (``align_corners=False``). Each row sums to one.

    Args:
        source: side ``s`` of the patch in pixels, at least 1.
        target: side ``t`` of the resized patch in pixels, at least 1.
        mode: ``"bilinear"`` or ``"bicubic"``.
        antialias: widen the filter when the patch shrinks. Note that PyTorch's bicubic filter is another one with
            antialias (a = -0.5) than without (a = -0.75), also when the patch grows.

    Returns:
        (t*t, s*s) in float64, on the CPU.

    Raises:
        FoveateError: a side below 1 or an unknown mode.
    """
    axis = _axis_matrix(source, target, mode, antialias)
    return torch.kron(axis, axis)


def _axis_matrix(source: int, target: int, mode: str, antialias: bool) -> Tensor:
    """The same map along one axis, (t, s): rows and columns are resized one after the other."""
    if mode not in get_args(ResizeMode):
        raise FoveateError(f"unknown resize mode {mode!r}: choose one of {', '.join(get_args(ResizeMode))}")
    if source < 1 or target < 1:
        raise FoveateError(f"a patch has at least one pixel a side, got a resize from {source} to {target}")
    # Two equal columns, because antialiased interpolation to a width of 1 is wrong on CPUs (with torch 2.14).
    one_hot_columns = torch.eye(source, dtype=torch.float64).view(source, 1, source, 1).repeat(1, 1, 1, 2)
    resized = F.interpolate(one_hot_columns, size=(target, 2), mode=mode, align_corners=False, antialias=antialias)
    return resized[..., 0].flatten(1).T.contiguous()


def resize_patch_kernel(
    weight: Tensor,
    size: int,
    *,
    mode: ResizeMode = "bilinear",
    antialias: bool = True,
    method: KernelResize = "pseudo-inverse",
) -> Tensor:
    """A patch kernel for another patch size. The bias of the embedding needs no change.

    Args:
        weight: (D, C, s, s), the kernel of the pretrained patch convolution, any floating dtype.
        size: side ``t`` of the new patches in pixels.
        mode: interpolation of the resize, ``"bilinear"`` or ``"bicubic"``.
        antialias: whether the resize is antialiased when it shrinks.
        method: ``"pseudo-inverse"`` (the paper's) or ``"adjoint"``; see the top of this module.

    Returns:
        (D, C, t, t) in the dtype and on the device of ``weight``; computed in float64.

    Raises:
        FoveateError: a kernel that is not square, a size below 1, an unknown mode or method.
    """
    if method not in get_args(KernelResize):
        raise FoveateError(f"unknown kernel resize {method!r}: choose one of {', '.join(get_args(KernelResize))}")
    if weight.ndim != 4 or weight.shape[-1] != weight.shape[-2]:
        raise FoveateError(f"a patch kernel has the shape (D, C, s, s), got {tuple(weight.shape)}")
    weight, source = weight.detach(), weight.shape[-1]
    if method == "pseudo-inverse":  # that of a Kronecker product is the product of theirs
        transfer = torch.linalg.pinv(_axis_matrix(source, size, mode, antialias).T)
    else:
        transfer = _axis_matrix(size, source, mode, antialias).T
    if source == size:
        return weight.clone()
    resized = transfer @ weight.to("cpu", torch.float64) @ transfer.T
    return resized.to(weight.device, weight.dtype)
