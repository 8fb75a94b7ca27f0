"""VTC-CLS: the patches with the greatest [CLS] attention over several blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError, Refusal
from foveate.core.pre_llm import PreLLMScorer
from foveate.core.tokens import EncoderSpec, Need, VisualTokens


@dataclass(frozen=True)
class VTCCLS(PreLLMScorer):
    """Keeps the patches with the greatest [CLS] attention, summed over the later blocks of the encoder.

    s = sum_l mean_h A_l[h, CLS, 1:] for the blocks l from `start` to the one whose output the language model reads
    (block 22 of CLIP ViT-L in LLaVA); the `count` greatest stay, in raster order (VTC-CLS, arXiv 2412.05819). With
    `start` at the last of these blocks this is FasterVLM.

    The authors tune the first block for every benchmark and do not publish which they used; their program's default is
    16 of 24. Their code handles one image of 576 patches. Tiled images divide the budget over their crops in proportion
    to their tokens.

    Args:
        start: First block of the sum, 0-based or from the end; None: two thirds of the depth, 16 of 24.
    """

    start: int | None = None

    name: ClassVar[str] = "vtc-cls"
    mechanism: ClassVar = ("attention",)
    title: ClassVar[str] = "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs"
    paper: ClassVar[str] = "arXiv 2412.05819"

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] rows of the blocks that are summed."""
        last = tower.last_used
        start = min(tower.num_layers * 2 // 3, last) if self.start is None else tower.layer(self.start)
        if start > last:
            raise FoveateError(
                Refusal(
                    "needs-later-block",
                    f"vtc-cls: no block from {start} on remains to sum, the language model reads block {last}",
                    f"start can be 0 to {last}",
                )
            )
        return tuple(Need("cls_attention", layer) for layer in range(start, last + 1))

    def score(self, tokens: VisualTokens) -> Tensor:
        """The sum of the [CLS] rows."""
        return torch.stack([tokens.get(need).float() for need in self.needs(tokens.tower)]).sum(dim=0)
