"""The scan of Mamba-2, in chunks of matrix products, and the kernel of `mamba_ssm` for the same.

    h_t = exp(dt_t a) h_(t-1) + dt_t b_t x_t^T          state (S, P) of a head, h_0 = 0
    y_t = c_t^T h_t

Transformers are SSMs (Dao and Gu, arXiv 2405.21060), section 6: inside a chunk of L tokens the recurrence is a masked
product of matrices, as in attention without a softmax, and chunks pass on their state. Time and memory are linear in
the number of tokens; no Python loop runs over tokens.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import wide

_KERNELS = "mamba_ssm.ops.triton.ssd_combined"


class Scan(Protocol):
    """What computes the outputs y of a scan."""

    def __call__(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
        """Scan a batch of sequences.

        Args:
            x: `(B, N, heads, P)` inputs.
            dt: `(B, N, heads)` positive step sizes, in the precision that sums are taken in.
            a: `(heads,)` negative rates of decay, in that precision.
            b: `(B, N, S)` input projections, the same for all heads.
            c: `(B, N, S)` output projections, the same for all heads.
            chunk_size: Tokens L of a chunk.

        Returns:
            `(B, N, heads, P)` in the dtype of `x`.
        """
        ...


def chunked_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
    """The scan in PyTorch, in float32; see `Scan`. The loop runs over chunks, whose matrices are L x L."""
    batch, _, heads, width = x.shape
    state = wide(x).new_zeros(batch, heads, b.shape[-1], width)
    outputs = []
    for part in zip(*(value.split(chunk_size, dim=1) for value in (x, dt, b, c)), strict=True):
        x_chunk, dt_chunk, b_chunk, c_chunk = (wide(value) for value in part)
        log_decay = (dt_chunk * a).cumsum(1).transpose(1, 2)  # (B, heads, L), from the start of the chunk
        values = (x_chunk * dt_chunk[..., None]).transpose(1, 2)  # (B, heads, L, P)
        between = log_decay[..., :, None] - log_decay[..., None, :]
        later = torch.ones(between.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        # Masked before exp: above the diagonal differences are positive and may overflow.
        weights = between.masked_fill(later, -torch.inf).exp() * (c_chunk @ b_chunk.transpose(1, 2))[:, None]
        carried = c_chunk[:, None] @ state * log_decay.exp()[..., None]
        outputs.append((weights @ values + carried).transpose(1, 2).to(x.dtype))
        to_end = (log_decay[..., -1:] - log_decay).exp()[..., None]  # (B, heads, L, 1)
        state = log_decay[..., -1:, None].exp() * state + (b_chunk[:, None] * to_end).transpose(2, 3) @ values
    return torch.cat(outputs, dim=1)


def kernel_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
    """The scan by the Triton kernel of `mamba_ssm`; see `Scan`.

    Raises:
        FoveateError: The package is not installed, or the tensors are not on a GPU.
    """
    try:
        kernels = importlib.import_module(_KERNELS)
    except ImportError as error:
        raise FoveateError(
            f"scan='mamba_ssm' of adventurer needs the package mamba_ssm, which cannot be imported ({error}); install "
            "it, or load the model with scan='torch'."
        ) from error
    if not x.is_cuda:
        raise FoveateError("scan='mamba_ssm' of adventurer runs on a GPU only; use scan='torch' here.")
    # One group: all heads share the projections.
    return kernels.mamba_chunk_scan_combined(x, dt, a, b[:, :, None], c[:, :, None], chunk_size)


#: By the name in the configuration.
SCANS: dict[str, Scan] = {"torch": chunked_scan, "mamba_ssm": kernel_scan}
