"""CMAI: mask visual tokens that the attended text context ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.in_attention import AttentionInputs, MaskMethod


@dataclass(frozen=True)
class CMAI(MaskMethod):
    r"""Masks, for every text token, the image tokens that its attended text ignored; no token is dropped.

    With $A_{tt}$ the attention of text to text and $A_{ti}$ that of text to image tokens, mean over heads, the focus of
    text token t on image token i is $F = A_{tt} A_{ti}$. Where $F_{ti} < \theta \cdot \mathrm{mean}_i F_{ti}$ the
    causal mask gets $-\infty$ for the pair. Rows of image tokens do not change. Generated tokens are text as well.

    "Enhancing Instruction-Following Capability of Visual-Language Models by Reducing Image Redundancy" (Yang et al.,
    arXiv 2411.15453), whose other half, `vmtc`, compresses before the language model; no code was released. Our
    choices: a threshold relative to the mean of the row, in every layer. The scores come from the layer's own unchanged
    attention, at the cost of computing the rows of text twice.

    Args:
        threshold: $\theta$, 0 or more; 0 hides nothing.
    """

    threshold: float = 0.5

    name: ClassVar[str] = "cmai"
    mechanism: ClassVar = ("query", "attention")
    title: ClassVar[str] = "Cross-Modality Attention Inhibition"
    paper: ClassVar[str] = "arXiv 2411.15453"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise FoveateError(f"cmai's threshold must be 0 or more, not {self.threshold}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(num_layers))

    def attention_mask(self, inputs: AttentionInputs, remembered: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `MaskMethod.attention_mask`; remembered is $A_{ti}$ of all text so far, (T, N)."""
        new = inputs.text[inputs.past :].nonzero().flatten()
        attention = inputs.rows(new)
        focused = attention.new_zeros(int(inputs.text.sum()), int(inputs.visual.sum()))
        if remembered is not None:  # images that came since are behind the earlier ones
            focused[len(focused) - len(new) - len(remembered) : len(focused) - len(new), : remembered.shape[1]] = (
                remembered
            )
        focused[len(focused) - len(new) :] = attention[:, inputs.visual]
        score = attention[:, inputs.text] @ focused
        allowed = inputs.allowed[new][:, inputs.visual]
        mean = (score * allowed).sum(dim=1, keepdim=True) / allowed.sum(dim=1, keepdim=True).clamp(min=1)
        hidden = torch.zeros_like(inputs.allowed)
        columns = inputs.visual.nonzero().flatten()
        hidden[new[:, None], columns] = allowed & (score < self.threshold * mean)
        return hidden, focused
