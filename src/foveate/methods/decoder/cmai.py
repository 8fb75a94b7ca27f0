"""CMAI: text looks only at what the text that it listens to has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.in_attention import AttentionInputs, MaskMethod


@dataclass(frozen=True)
class CMAI(MaskMethod):
    r"""Hides image tokens from every text token on which its text has no focus; no token is dropped.

    With $A_{tt}$ the attention of text on text and $A_{ti}$ that of text on image tokens, mean over heads, the focus of
    text token t on image token i is $F = A_{tt} A_{ti}$: what all text that t listens to looks at. Where
    $F_{ti} < \theta \cdot \mathrm{mean}_i F_{ti}$ the causal mask gets $-\infty$ for the pair, and the layer attends
    with what is left. Image tokens see what they saw. Written tokens are text as well.

    "Enhancing Instruction-Following Capability of Visual-Language Models by Reducing Image Redundancy" (Yang et al.,
    arXiv 2411.15453), whose other half, VMTC, compresses before the language model; no code was released. Which scores
    are low, and in which layers, are choices of ours: a threshold relative to the mean of the row, every layer. The
    scores come from the layer's own unchanged attention, at the cost of the rows of text computed twice.

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
        """See `MaskMethod.hides`; remembered is $A_{ti}$ of all text so far, (T, N)."""
        new = inputs.text[inputs.past :].nonzero().flatten()
        attention = inputs.rows(new)
        focused = attention.new_zeros(int(inputs.text.sum()), int(inputs.visual.sum()))
        if remembered is not None:  # images that came since stand behind those that were there
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
