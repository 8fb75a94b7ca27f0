"""ZipVL: sparse prefill attention with a ratio for every layer, and a mixed-precision cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.in_attention import AttentionInputs, SparseMethod
from foveate.core.packing import BITS


@dataclass(frozen=True)
class ZipVL(SparseMethod):
    r"""Lets, in every layer, only the tokens that hold most of its attention attend, and quantises the cache.

    With $a_j = \sum_i A_{ij}$ over probe rows i and the mean over heads, the number of important tokens is the smallest
    p whose largest scores sum to $\tau \sum_j a_j$; they are the p tokens with the largest $a_j / n_j$, where $n_j$
    probe rows may attend to token j: without the division early tokens win for being early. All tokens count, text too.
    The others skip this layer's attention and are cached in fewer bits.

    "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache Compression" (He et
    al., arXiv 2410.08584v1); version 2 drops unimportant tokens from the cache instead. No code was released. Our
    choices: tau, the numbers of probes and the bits, of which the paper's text was not at hand; the prompt's last token
    is always important; new probes are drawn for every layer; generated tokens are stored in the bits of important
    ones, `residual` at a time. Layers with a window and static caches keep all bits. Generated tokens attend to the
    packed numbers, which are never unpacked as a whole: a decoding step needs less memory, not less time.

    Args:
        tau: Share of attention, above 0, up to 1.
        recent: Probe rows at the end of the prompt.
        sampled: Probe rows drawn among the others.
        high: Bits of important tokens: 1, 2, 4, 8, or 16 for no quantisation.
        low: Bits of the others.
        residual: Generated tokens that are cached unquantised before they are stored.
        seed: Of the drawn probes.
    """

    tau: float = 0.975
    recent: int = 64
    sampled: int = 64
    high: int = 4
    low: int = 2
    residual: int = 64
    seed: int = 0

    name: ClassVar[str] = "zipvl"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = "ZipVL: Dynamic Token Sparsification and KV Cache Compression"
    paper: ClassVar[str] = "arXiv 2410.08584"

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise FoveateError(f"zipvl's tau must be above 0 and at most 1, not {self.tau}.")
        if self.recent < 1 or self.sampled < 0 or self.residual < 1:
            raise FoveateError(
                "zipvl needs one recent probe and one residual token at least, and no less than 0 sampled."
            )
        for bits in (self.high, self.low):
            if bits not in (*BITS, 16):
                raise FoveateError(f"zipvl stores 1, 2, 4, 8 or all 16 bits, not {bits}.")

    @property
    def bits(self) -> tuple[int, int]:
        """See `SparseMethod.bits`."""
        return self.high, self.low

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(num_layers))

    def probes(self, count: int, layer: int) -> Tensor:
        """(r,) the probe rows of a prompt of `count` tokens, ascending."""
        recent = torch.arange(max(count - self.recent, 0), count)
        generator = torch.Generator().manual_seed(((self.seed * 1_009 + layer) * 1_000_003 + count) % 2**63)
        drawn = torch.randperm(max(count - self.recent, 0), generator=generator)[: self.sampled]
        return torch.cat([drawn.sort().values, recent])

    def active_tokens(self, inputs: AttentionInputs) -> Tensor:
        """See `SparseMethod.active_tokens`."""
        real = (inputs.visual | inputs.text)[inputs.past :].nonzero().flatten()
        rows = real[self.probes(len(real), inputs.layer).to(real.device)]
        columns = real + inputs.past
        received = inputs.attention_received(rows, columns)
        visible = inputs.allowed[rows][:, columns].sum(dim=0)
        share = received.sort(descending=True).values.double().cumsum(dim=0)
        count = len(real) if self.tau == 1 else int((share < self.tau * share[-1]).sum()) + 1
        normalised = received / visible.clamp(min=1)
        normalised[-1] = torch.inf
        best = normalised.sort(descending=True, stable=True).indices[: min(count, len(real))]
        active = torch.zeros(inputs.query.shape[1], dtype=torch.bool, device=real.device)
        active[real[best]] = True
        return active
