"""VASparse: visual-aware sparse attention with contrastive decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class VASparse:
    r"""Visual-aware sparse attention and contrastive decoding, against answers that the image does not support.

    In decoding, every layer attends only to the share `keep` of its cached tokens with the highest

    $\delta_i = a_i + \lambda P_i,\qquad P = \mathrm{softmax}_i \sum_{k \in image} a_{i,k}$

    where $a_i$ is the attention of the generated token to token i, and $a_{i,k}$ that of token i to token k when i was
    computed, means over heads. Logits become logits - `contrast` x sparse logits: those of a branch for the last token
    that leaves the model after `exit_layer` layers and does not attend to the share `mask` of the image, so that no
    second pass through the model is needed.

    "VASparse: Towards Efficient Visual Hallucination Mitigation via Visual-Aware Token Sparsification" (Zhuang et al.,
    CVPR 2025, arXiv 2501.06553), from its description alone; in the released code, by default, the sparse branch has no
    image at all, tokens are masked at random, and contrast waits for an object detector. The paper writes $\langle q,
    K_i \rangle^2$ for the attention; literally, products of any size would be added to shares that sum to 1, and a
    token opposite to the query would rank first. Our choices: $\lambda$, the mean over heads, the exit after one layer,
    and that the branch misses the part of the image with the highest $\delta$. The paper's calibration of attention
    sinks is left out: its formula could not be verified.

    Args:
        keep: Share of the cached tokens that a generated token attends to, above 0 to 1.
        weight: $\lambda$, 0 or more.
        contrast: Factor of the sparse logits; 0: nothing is subtracted.
        mask: Share of the image that the sparse branch does not attend to, 0 to 1.
        exit_layer: Layers of the sparse branch.
    """

    keep: float = 0.9
    weight: float = 1.0
    contrast: float = 0.1
    mask: float = 0.5
    exit_layer: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise FoveateError(f"vasparse keeps a share above 0 and up to 1, not {self.keep}.")
        if not 0 <= self.mask <= 1:
            raise FoveateError(f"vasparse masks a share of the image from 0 to 1, not {self.mask}.")
        for name in ("weight", "contrast"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise FoveateError(f"vasparse's {name} must be 0 or more, not {getattr(self, name)}.")
        if isinstance(self.exit_layer, bool) or not isinstance(self.exit_layer, int) or self.exit_layer < 1:
            raise FoveateError(f"vasparse's exit_layer must be a whole number from 1 on, not {self.exit_layer!r}.")

    def scores(self, attention: Tensor, mass: Tensor, visible: Tensor) -> Tensor:
        r"""$\delta$ (K,) of cached tokens, float32; minus infinity for those that are masked.

        Args:
            attention: (K,) of the generated token to each, mean over heads.
            mass: (K,) attention of each token to the image.
            visible: (K,) bool.
        """
        saliency = mass.float().masked_fill(~visible, -torch.inf).softmax(dim=0)
        return (attention.float() + self.weight * saliency).masked_fill(~visible, -torch.inf)

    def attended_tokens(self, scores: Tensor) -> Tensor:
        """Indices of the attended tokens, ascending: of n with a score, keep x n rounded up, the last one included.

        The last one is the token itself, which always attends to itself: our choice.
        """
        count = share_of(self.keep, int((scores > -torch.inf).sum()), "up")
        scores = scores.clone()
        scores[-1] = torch.inf
        return scores.topk(max(count, 1)).indices.sort().values

    def branch_tokens(self, scores: Tensor, visual: Tensor) -> Tensor:
        """Indices that the sparse branch attends to, ascending: all text, and the image without its best part.

        Args:
            scores: (K,).
            visual: (K,) bool.
        """
        visible = (visual & (scores > -torch.inf)).nonzero().flatten()
        hidden = visible[scores[visible].topk(share_of(self.mask, len(visible))).indices]
        stays = scores > -torch.inf
        stays[hidden] = False
        return stays.nonzero().flatten()
