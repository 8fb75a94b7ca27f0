"""ToDRE, second stage: drop all visual tokens in a late layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection


@dataclass(frozen=True)
class ToDREDecoder(DecoderMethod):
    r"""Drops all visual tokens before a late layer if text and image hardly attend to each other there.

    By then the information of the image has moved into the text ("information migration"). With the softmax A of the
    layer, mean over heads, the words T of the question and the visual tokens V,

    $\alpha_{t \to v} = \text{mean}_{i \in T} \sum_{j \in V} A_{ij},\qquad \alpha_{v \to t} = \text{mean}_{i \in V}
    \sum_{j \in T} A_{ij}$,

    the image is dropped if both are below `threshold`; else it stays to the end. Under a causal mask the second one is
    0 for all text after the image.

    "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance" (Li et al., arXiv 2505.18757v2,
    section 4.2, eq. 8; threshold and layer are those of its tables 2 and 3 of the appendix). `todre:10% +
    todre-decoder` is the whole paper. There is no public code. Our choices: the question is the text after the image;
    with several images V is all of them, and each is judged by the text after it; positions are the original ones.

    Args:
        threshold: Above 0; the larger, the more images are dropped. The paper has 0.03 to 0.15.
    """

    threshold: float = 0.1

    name: ClassVar[str] = "todre-decoder"
    mechanism: ClassVar = ("attention", "query")
    title: ClassVar[str] = "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance"
    paper: ClassVar[str] = "arXiv 2505.18757"
    budget: ClassVar = "none"
    static_count: ClassVar[bool] = False
    needs_previous_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold <= 0:
            raise FoveateError(f"todre-decoder: threshold is a number above 0, not {self.threshold}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Seven eighths of the layers: before layer 28 of 32, by the attention of layer 27."""
        return (min(max(1, round(7 * num_layers / 8)), num_layers - 1),)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        goes = all(bool(share < self.threshold) for share in self.shares(tokens))
        return Selection(torch.arange(0 if goes else len(tokens), device=tokens.device))

    def shares(self, tokens: LayerTokens) -> tuple[Tensor, Tensor]:
        r"""Shares of attention: $\alpha_{t \to v}$ and $\alpha_{v \to t}$."""
        attention, words = tokens.attention("previous"), tokens.question
        visual = tokens.prompt.columns >= 0
        if attention.key_mask is not None:
            visual = visual & attention.key_mask[attention.past :]
        visual = visual.index_fill(0, tokens.prompt.text, False).nonzero().flatten()
        return attention.attention_received(words, visual).sum(), attention.attention_received(visual, words).sum()
