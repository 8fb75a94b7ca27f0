"""SpecVLM's elastic visual compressor: five branches that shorten an image for a draft, and a gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Branches, in the order of the gate.
BRANCHES = ("prune", "pool", "conv", "resample", "text")


class Compressor(nn.Module):
    """Five branches that shorten the tokens of one image for a draft, and a gate that chooses one by the question.

    - prune: every r-th part stays, drawn at random, in order;
    - pool: means of r consecutive tokens;
    - conv: a strided convolution, kernel and stride r;
    - resample: learned queries that attend to the image once;
    - text: no token of the image stays.

    Pooling and convolution run along the row-major sequence, not over the raster: our choice, because tiled images and
    clips are no single raster.

    Args:
        width: d, of tokens.
        heads: Of the resampler's attention.
        prune: Tokens for each that stays.
        pool: Tokens a mean.
        conv: Kernel and stride.
        queries: Tokens that the resampler makes.
    """

    def __init__(self, width: int, heads: int, prune: int, pool: int, conv: int, queries: int) -> None:
        super().__init__()
        self.prune, self.pool = prune, pool
        #: Branch that overrides the gate, while training measures the loss under every branch.
        self.forced_branch: str | None = None
        self.conv = nn.Conv1d(width, width, conv, stride=conv)
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.resampler = nn.MultiheadAttention(width, heads, batch_first=True)
        self.gate = nn.Linear(width, len(BRANCHES))
        with torch.no_grad():  # begins as average pooling
            self.conv.weight.copy_(torch.eye(width)[:, :, None].expand(-1, -1, conv) / conv)
            nn.init.zeros_(self.conv.bias)  # ty: ignore[invalid-argument-type]

    def shorten(self, branch: str, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """The tokens (n, d) of one image, shortened by one branch: (m, d)."""
        batch = tokens[None]
        branches: dict[str, Callable[[], Tensor]] = {
            "prune": lambda: tokens[self.drawn(len(tokens), generator).to(tokens.device)],
            "pool": lambda: F.avg_pool1d(tokens.T[None], self.pool, ceil_mode=True, count_include_pad=False)[0].T,
            "conv": lambda: self.conv(self._padded(tokens))[0].T,
            "resample": lambda: self.resampler(self.queries[None], batch, batch, need_weights=False)[0][0],
            "text": lambda: tokens[:0],
        }
        return branches[branch]()

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the tokens that pruning keeps: ceil(count / r) of them, ascending, on the CPU."""
        return torch.randperm(count, generator=generator)[: -(-count // self.prune)].sort().values

    def _padded(self, tokens: Tensor) -> Tensor:
        """(1, d, n) with the last token repeated until the kernel divides n."""
        missing = -len(tokens) % self.conv.stride[0]
        return F.pad(tokens.T[None], (0, missing), mode="replicate")

    def choose(self, question: Tensor, generator: torch.Generator) -> tuple[str, Tensor]:
        """The branch that the gate chooses for a question (t, d), and its weight.

        In training the choice is drawn (Gumbel-softmax, temperature 1) and the weight is 1 with the gradient of the
        drawn probability (straight through); else the likeliest branch is taken. No gradient comes from "text", which
        leaves no token to weigh; see `SpecVLM.choosing_loss`.
        """
        if self.forced_branch is not None:
            return self.forced_branch, question.new_ones(())
        logits = self.gate(question.mean(dim=0))
        if not self.training:
            return BRANCHES[int(logits.argmax())], torch.ones_like(logits[0])
        uniform = torch.rand(len(BRANCHES), generator=generator).clamp(min=1e-20).to(logits.device)
        soft = (logits.float() - (-uniform.log()).log()).softmax(dim=-1)
        chosen = int(soft.argmax())
        return BRANCHES[chosen], (soft[chosen] - soft[chosen].detach() + 1).to(logits.dtype)
