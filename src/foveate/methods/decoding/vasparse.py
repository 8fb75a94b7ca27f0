"""VASparse: what is written looks at what matters to it and the image, and is freed of what is said without one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class VASparse:
    r"""Visual-aware sparse attention and contrastive decoding, against answers that the image does not support.

    While text is written, every layer attends only to the share `keep` of its cached tokens with the highest

    $\delta_i = a_i + \lambda P_i,\qquad P = \mathrm{softmax}_i \sum_{k \in image} a_{i,k}$

    where $a_i$ is the attention that the written token pays to token i, and $a_{i,k}$ what token i paid to token k when
    it was read, means over heads. Logits become logits - `contrast` x sparse logits: those of a branch for the last
    token that leaves the model after `exit_layer` layers and does not see the share `mask` of the image, so that no
    second pass through the model is needed.

    "VASparse: Towards Efficient Visual Hallucination Mitigation via Visual-Aware Token Sparsification" (Zhuang et al.,
    CVPR 2025, arXiv 2501.06553), from its description alone; in the released code, by default, the sparse branch never
    sees the image, tokens are masked at random, and contrast waits for an object detector. The
    paper writes $\langle q, K_i \rangle^2$ for the attention: to the letter, products of any size would stand beside
    shares that sum to 1, and a token from which the query is turned away would come first. Our choices: $\lambda$, the
    mean over heads, the exit after one layer, and that the branch misses the part of the image with the highest
    $\delta$. The paper's calibration of attention sinks is not here: its formula could not be verified.

    Args:
        keep: Share of the cached tokens that a written token sees, above 0 to 1.
        weight: $\lambda$, 0 or more.
        contrast: Factor of what is subtracted; 0: nothing is.
        mask: Share of the image that the sparse branch does not see, 0 to 1.
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
        r"""$\delta$ (K,) of cached tokens, float32; those that are not seen get minus infinity.

        Args:
            attention: (K,) that the token that is written pays to each, mean over heads.
            mass: (K,) attention that each token paid to the image.
            visible: (K,) bool.
        """
        saliency = mass.float().masked_fill(~visible, -torch.inf).softmax(dim=0)
        return (attention.float() + self.weight * saliency).masked_fill(~visible, -torch.inf)

    def attended_tokens(self, scores: Tensor) -> Tensor:
        """Places of the tokens that are seen, ascending: of n with a score, keep x n rounded up, the last among them.

        The last one is the token itself, which always sees itself: our choice.
        """
        count = share_of(self.keep, int((scores > -torch.inf).sum()), "up")
        scores = scores.clone()
        scores[-1] = torch.inf
        return scores.topk(max(count, 1)).indices.sort().values

    def branch_tokens(self, scores: Tensor, visual: Tensor) -> Tensor:
        """Places of what the sparse branch sees, ascending: all text, and the image without its best part.

        Args:
            scores: (K,).
            visual: (K,) bool.
        """
        visible = (visual & (scores > -torch.inf)).nonzero().flatten()
        hidden = visible[scores[visible].topk(share_of(self.mask, len(visible))).indices]
        stays = scores > -torch.inf
        stays[hidden] = False
        return stays.nonzero().flatten()
