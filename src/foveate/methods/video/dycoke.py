"""DyCoke: of most frames only the tokens that changed since a frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.method import BudgetRule
from foveate.core.pre_llm import divide
from foveate.core.tokens import Selection, VisualTokens, in_order, select_tokens
from foveate.core.video import VideoMethod
from foveate.methods.shared.clustering import spread

#: Frames of a window, of which the first stays whole.
WINDOW = 4


@dataclass(frozen=True)
class DyCoke(VideoMethod):
    """Keeps every fourth frame whole, and of the others the tokens that are least like those of a frame before.

    In windows of 4 frames, every token of frames 1 and 3 is compared with the token at its place in the frame before,
    every one of frame 2 with that in frame 0, by cosine; of each frame the share `prune` with the greatest cosine goes
    (DyCoke, arXiv 2411.15024, temporal token merging; the whole of it is `dycoke + dycoke-decoder`). All frames are
    compared as they were before. With a budget, what whole frames leave of it is shared by the others equally; where
    they leave nothing, they alone keep their share of it, at even places.

    `form="code"` does as the authors' code: frame 2 of the last whole window stays whole, of an odd number of frames
    the last is lost (of one frame it is kept; the code ends with an error below five), and what stays of a frame is
    read by rising cosine, where here it is in the order of the raster.

    Args:
        prune: Without a budget: share of the tokens of a frame that go.
        form: Without a budget: "paper" or "code".
    """

    prune: float = 0.7
    form: Literal["paper", "code"] = "paper"

    name: ClassVar[str] = "dycoke"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2411.15024"
    budget: ClassVar[BudgetRule] = "optional"
    without_budget: ClassVar = ("prune", "form")

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise FoveateError(f"dycoke: prune is a share, 0 to below 1, not {self.prune}.")
        if self.form not in ("paper", "code"):
            raise FoveateError(f'dycoke: form is "paper" or "code", not {self.form!r}.')

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        place, frames = tokens.frame_indices, tokens.frames.float()
        number, size = place.shape
        before = [number_before(frame) for frame in range(number)]
        dropped = []
        code = self.form == "code" and not count
        if code and number > 1:
            before = [None if frame % WINDOW == 2 and frame >= number - 2 else of for frame, of in enumerate(before)]
            dropped = [number - 1] if number % 2 else []
        whole = [frame for frame, of in enumerate(before) if of is None and frame not in dropped]
        others = [frame for frame, of in enumerate(before) if of is not None and frame not in dropped]
        left = count - size * len(whole)
        if count and left <= 0:
            parts = zip(whole, divide(count, [size] * len(whole)), strict=True)
            return select_tokens(torch.cat([place[frame, spread(size, share, place.device)] for frame, share in parts]))
        stay = size - share_of(self.prune, size, "up")
        shares = divide(left, [size] * len(others)) if count else [stay] * len(others)
        kept = {frame: place[frame] for frame in whole}
        for frame, share, order in zip(others, shares, _changes(frames, others, before), strict=True):
            kept[frame] = place[frame, order[:share]]
        read = torch.cat([kept[frame] for frame in sorted(kept)])
        if not code:
            return select_tokens(read)
        return in_order(select_tokens(read), tokens.features, read.argsort().argsort())


def number_before(frame: int) -> int | None:
    """The frame that a frame is compared with; None: it stays whole."""
    return (None, frame - 1, frame - 2, frame - 1)[frame % WINDOW]


def _changes(frames: Tensor, others: list[int], before: list[int | None]) -> Tensor:
    """(m, N) places of the tokens of the frames `others`, by rising cosine to those of the frames before."""
    earlier = [before[frame] for frame in others]
    cosine = F.cosine_similarity(frames[others], frames[earlier], dim=-1)
    return cosine.argsort(dim=1, stable=True)
