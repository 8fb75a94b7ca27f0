"""VisPruner: tokens of greatest [CLS] attention, and the others without duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, select_tokens
from foveate.methods.shared.diversity import without_duplicates


@dataclass(frozen=True)
class VisPruner(PreLLMMethod):
    """Keeps the patches with the greatest [CLS] attention and, of the others, those that have no near duplicate.

    Of a budget of T, the int(r T) patches with the greatest a = mean_h A[h, CLS, 1:] stay. The others, in order of
    falling attention, lose up to `step` tokens a round until T remain: the list is split into even and odd indices,
    every even token is scored with its greatest cosine to an odd one, and the highest-scoring even tokens are dropped.
    The next list is the remaining even ones, in order of falling score, then the odd ones (VisPruner, arXiv 2412.01818,
    ICCV 2025). Features and attention are those of the block whose output the language model reads. Tiled images divide
    the budget over their crops. An encoder without [CLS] ranks by attention received, as the authors do for SigLIP
    (there at the last block).

    The authors' code needs an even number of tokens in every round; here there may be one more even index. Of equal
    scores the first counts as the higher.

    Args:
        important: Share r of the budget for attention, 0 to 1.
        step: Most tokens dropped in a round; 8 in the authors' code.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
    """

    important: float = 0.5
    step: int = 8
    layer: int | None = None

    name: ClassVar[str] = "vispruner"
    mechanism: ClassVar = ("attention", "similarity")
    title: ClassVar[str] = "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs"
    paper: ClassVar[str] = "arXiv 2412.01818"

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1:
            raise FoveateError(f"vispruner: important is a share from 0 to 1, not {self.important}.")
        if self.step < 1:
            raise FoveateError(f"vispruner: step is a number of tokens from 1 on, not {self.step}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row and the features of the same block."""
        layer = tower.layer(self.layer)
        return Need("cls_attention", layer, substitute=True), Need("features", layer)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        attention, features = (tokens.get(need) for need in self.needs(tokens.tower))
        order = attention.argsort(descending=True, stable=True)
        chosen, others = order.tensor_split([share_of(self.important, count, "down")])
        diverse = without_duplicates(features[others], count - len(chosen), self.step)
        return select_tokens(torch.cat([chosen, others[diverse]]))
