"""ToDRE, second stage: no image any more where text has stopped looking at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.decoder.method import DecoderMethod, LayerTokens
from foveate.errors import FoveateError
from foveate.tokens import Selection


@dataclass(frozen=True)
class ToDREAt(DecoderMethod):
    r"""Leaves all visual tokens out from the first late layer on before which text hardly looks at them any more.

    By then what they say has moved into the text ("information migration"). With $a_i$ the attention that word i of the
    question pays to the N tokens of the image in the layer before, mean over heads, and $n_i$ the number of tokens that
    it may see, the image goes as soon as $\text{mean}_i\,a_i / \text{mean}_i\,(N / n_i)$ is below `threshold`: its
    attention is that small a part of what it would be if all tokens were looked at equally. Each image has a layer of
    its own; an image that is looked at to the end stays to the end.

    "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance" (Li et al., arXiv 2505.18757). The
    first stage is `todre`: `todre:10% + todre-at` is the whole paper. There is no public code, and where the paper
    finds the layer from cross-modal attention, its rule could not be checked. Our choice: the rule above, its
    threshold, that layers of the second half are asked, and positions as they were.

    Args:
        threshold: Above 0; the larger, the earlier an image goes.
    """

    threshold: float = 0.1

    name: ClassVar[str] = "todre-at"
    title: ClassVar[str] = "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance"
    paper: ClassVar[str] = "arXiv 2505.18757"
    budget: ClassVar = "none"
    exact: ClassVar[bool] = False
    asks_previous: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold <= 0:
            raise FoveateError(f"todre-at: threshold is a number above 0, not {self.threshold}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Every layer of the second half, the last one too: 16 to 31 of 32."""
        return tuple(range(max(1, num_layers // 2), num_layers))

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        stays = bool(self.looked_at(tokens) >= self.threshold)
        return Selection(torch.arange(len(tokens) if stays else 0, device=tokens.device))

    def looked_at(self, tokens: LayerTokens) -> Tensor:
        """Attention that the question pays to the image, as a part of what equal attention to all tokens would be."""
        attention, rows = tokens.attention("previous"), tokens.question
        equal = attention.visible(rows, tokens.places) / attention.visible(rows)
        return attention.received(rows, tokens.places).sum() / equal.mean()
