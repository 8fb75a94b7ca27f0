"""TS-LLaVA: tokens at even steps over all frames, and all tokens of thumbnails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Selection, VisualTokens, select_tokens
from foveate.core.video import VideoMethod


@dataclass(frozen=True)
class TSLLaVA(VideoMethod):
    """Keeps all tokens of thumbnails, and tokens at even steps over those of all other frames.

    With all tokens of the frames in one sequence of M, frame by frame and row by row, the tokens at round(linspace(0, M
    - 1, S)) stay, where S is the budget without the tokens of the thumbnails: borders of frames and rows count for
    nothing, so that the columns that stay drift from frame to frame (TS-LLaVA, arXiv 2411.11066). Thumbnails are the
    last frames of the clip, or the first; the step `thumbnails` of a plan makes them, as in `thumbnails:50 +
    ts-llava(thumbnails=1):3456`, which is the paper's V2 on LLaVA: 576 tokens of a thumbnail of 6 tiles and 2880 of 50
    frames. Without thumbnails all frames are sampled.

    Steps are float32, as in the authors' code, or float64 where a token would come twice. An image has no thumbnail.

    Args:
        thumbnails: How many of the frames are thumbnails; for a model that reads two frames at once, pairs of copies.
        place: "after" or "before" the frames; as in the step `thumbnails`.
    """

    thumbnails: int = 0
    place: Literal["after", "before"] = "after"

    name: ClassVar[str] = "ts-llava"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = (
        "TS-LLaVA: Constructing Visual Tokens through Thumbnail-and-Sampling for Training-Free Video Large Language "
        "Models"
    )
    paper: ClassVar[str] = "arXiv 2411.11066"

    def __post_init__(self) -> None:
        if self.thumbnails < 0:
            raise FoveateError(f"ts-llava: thumbnails is a number of frames, 0 or more, not {self.thumbnails}.")
        if self.place not in ("after", "before"):
            raise FoveateError(f"ts-llava: place is after or before, not {self.place!r}.")

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        place = tokens.frame_indices
        number = self.thumbnails if tokens.is_clip else 0
        if number >= len(place):
            raise FoveateError(
                f"ts-llava: the clip has {len(place)} frames, and {number} are said to be thumbnails; make them with "
                "the step thumbnails, such as thumbnails:50 + ts-llava(thumbnails=1):3456."
            )
        first = number if self.place == "before" else len(place) - number
        sides = place[:first], place[first:]
        kept, sampled = (side.flatten() for side in (sides if self.place == "before" else sides[::-1]))
        if count <= len(kept):
            raise FoveateError(
                f"ts-llava: the thumbnails alone have {len(kept)} tokens, and the budget is {count}; give more than "
                "that, or leave thumbnails out."
            )
        steps = even_steps(len(sampled), count - len(kept)).to(sampled.device)
        return select_tokens(torch.cat([kept, sampled[steps]]))


def even_steps(size: int, count: int) -> Tensor:
    """(count,) ascending places below `size`, rounded from even steps, with the first and the last; count <= size."""
    steps = torch.linspace(0, size - 1, count).round().long()
    if bool((steps[1:] == steps[:-1]).any()):
        steps = torch.linspace(0, size - 1, count, dtype=torch.float64).round().long()
    return steps
