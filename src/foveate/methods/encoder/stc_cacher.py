"""STC-Cacher: reuse of features of static tokens between frames, inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class STCCacher:
    """Computes only the tokens of a frame that changed, and takes the others from a reference frame, in every block.

    Every `interval`-th frame is a reference: its keys, values, and outputs of attention and MLP are kept. In the frames
    between, a block computes the keys K of all tokens. The `dynamic` share of tokens with the least cosine to the
    reference's keys at the same place is computed anew: their queries and values, their attention over all keys K and
    over values that are the reference's except for theirs, and their MLP. All other tokens add the reference's outputs
    of attention and MLP to their own residual. No token is dropped (arXiv 2512.00891, the STC-Cacher).

    The paper reuses cached keys of static tokens; this follows the authors' code (`model/custom_siglip.py` of
    lern-to-write/STC), which computes all keys, since these decide which tokens are dynamic. There chunks of several
    frames share a decision on the last frame of the reference chunk; here, as in its default, a chunk is one frame.
    In encoders with temporal patches a frame is what one patch spans.

    Args:
        dynamic: Share of the tokens that are computed, above 0 and up to 1; rounded down, at least one token.
        interval: Frames from one reference to the next, 1 or more; 1 reuses nothing.
    """

    dynamic: float = 0.25
    interval: int = 2

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        if not 0 < self.dynamic <= 1:
            raise FoveateError(f"STCCacher: dynamic is {self.dynamic}; it is a share above 0, up to 1.")
        if not isinstance(self.interval, int) or isinstance(self.interval, bool) or self.interval < 1:
            raise FoveateError(f"STCCacher: interval is {self.interval}; it is a number of frames, 1 or more.")

    def count(self, tokens: int) -> int:
        """Dynamic tokens among `tokens`."""
        return max(1, share_of(self.dynamic, tokens, "down"))

    def dynamic_tokens(self, keys: Tensor, reference: Tensor) -> Tensor:
        """Places (F, k) int64, ascending, of the tokens that changed most; of equal ones the first.

        Args:
            keys: (F, N, d) of the frames, all heads together, before any rotation (which changes no cosine of keys at
                one place).
            reference: (F, N, d) of the reference of every frame.
        """
        likeness = F.cosine_similarity(keys, reference, dim=-1)
        return likeness.argsort(dim=1, stable=True)[:, : self.count(keys.shape[1])].sort(dim=1).values
