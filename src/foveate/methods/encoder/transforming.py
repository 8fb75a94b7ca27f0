"""Token Transforming: dense many-to-many merging inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.bipartite import Tokens, match, pick, place
from foveate.core.errors import FoveateError
from foveate.core.in_encoder import EncoderMethod, Step, spread
from foveate.core.tokens import wide


@dataclass(frozen=True)
class TokenTransforming(EncoderMethod):
    """Drops the most redundant tokens of every encoder block and distributes each over the others by similarity.

    Every reduction of N rows to M is Y = W X. Pruning has rows with a single 1; merging has one non-zero in a column;
    here W is dense, many to many (Token Transforming, arXiv 2506.05709; its first form is M2M-TAG, NeurIPS 2024
    workshop on machine learning and compression):

        P[m, n] = softmax over m of cos(key_m, key_n) / temperature
        W[m, n] = P[m, n] s_n / sum_n' P[m, n'] s_n'

    for a row n that is dropped; one that stays has P = 1 at itself. s is the number of patches of a row. Columns of P
    sum to 1, so that no patch is lost; rows of W sum to 1, so that scale is kept; the size of a new row is sum_n P[m,
    n] s_n, and the attention logits of its key carry the log of it.

    The authors have published no code, and we could read only the framework of the papers. Our choices: rows are
    dropped in ToMe's order (most similar to a neighbour first, equal amounts in every block), the temperature, and the
    sizes in attention. A temperature towards 0 gives merging, many to one. For pictures and for the language model a
    patch counts as part of the row that took the largest share of it.

    Args:
        temperature: Of the softmax over cosines, above 0.
    """

    name: ClassVar[str] = "token-transforming"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = (
        "Token Transforming: A Unified and Training-Free Token Compression Framework "
        "for Vision Transformer Acceleration"
    )
    paper: ClassVar[str] = "arXiv 2506.05709"

    temperature: float = 0.05

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        if not self.temperature > 0:
            raise FoveateError(f"{self.name}: the temperature is {self.temperature}; it must be above 0.")

    def schedule(self, patches: int, blocks: int, cls: bool, count: int | None) -> tuple[Step | None, ...]:
        """See `EncoderMethod.steps`."""
        assert count is not None  # `steps` has asked for a budget
        amounts = spread(patches - count, patches, blocks, cls)
        return tuple(self.step(amount, cls) if amount else None for amount in amounts)

    def step(self, amount: int, cls: bool) -> Step:
        """Give up `amount` rows."""

        def transform(tokens: Tokens, keys: Tensor) -> Tokens:
            matching = match(keys, cls=cls)
            stay, dropped = pick(matching, amount, ordered=True)
            row = place(stay, dropped, matching.partner, tokens.x.shape[1])
            odd = torch.arange(1, row.shape[1], 2, device=row.device).expand(len(row), -1)
            stay, dropped = torch.cat([2 * stay, odd], dim=1), 2 * dropped

            unit = F.normalize(wide(keys), dim=-1)
            logits = _rows(unit, dropped) @ _rows(unit, stay).transpose(1, 2) / self.temperature
            if cls:
                logits[..., 0] = -torch.inf
            share = logits.softmax(dim=-1).to(tokens.size.dtype) * _rows(tokens.size, dropped)
            size = _rows(tokens.size, stay) + share.sum(dim=1)[..., None]
            mass = wide(_rows(tokens.x, stay)) * _rows(tokens.size, stay)
            x = (mass + share.transpose(1, 2) @ wide(_rows(tokens.x, dropped))) / size
            row.scatter_(1, dropped, logits.argmax(dim=-1))
            return Tokens(x.to(tokens.x.dtype), size, row.gather(1, tokens.source))

        return transform


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, n, d) of x (B, N, d) at `index` (B, n)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
