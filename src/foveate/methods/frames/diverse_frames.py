"""Frames at even times, and the frames that are least like those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource, even_times
from foveate.methods.shared.contrastive import contrastive_encoder


@dataclass(frozen=True)
class DiverseFrames(FrameSampler):
    """Reads frames at even times, and those that are least like the frames chosen so far, to a contrastive model.

    Of `candidates` frames at even times the k * `uniform` (rounded down) at even steps are taken. Then, until there are
    k, the candidate with the least mean cosine to all that are taken, by its features of a contrastive model (D-CoDe,
    arXiv 2510.08818, frame selection; `dcode` merges the tokens). Of equal ones the first is taken. A clip of no more
    candidates than k is read whole.

    The authors' evaluation takes 25 of 50 candidates with 0.8 by default, and other numbers for each data set.

    Args:
        encoder: Folder or Hub id of a model with image features, such as CLIP or SigLIP; the authors' is
            openai/clip-vit-large-patch14-336. There is no default.
        candidates: Frames that are compared.
        uniform: Share of the frames that are at even steps.
    """

    encoder: str = ""
    candidates: int = 50
    uniform: float = 0.85

    name: ClassVar[str] = "diverse-frames"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = (
        "D-CoDe: Scaling Image-Pretrained VLMs to Video via Dynamic Compression and Question Decomposition"
    )
    paper: ClassVar[str] = "arXiv 2510.08818"

    def __post_init__(self) -> None:
        if not self.encoder:
            raise FoveateError(
                "diverse-frames needs a contrastive model, as folder or Hub id; write one, such as "
                "diverse-frames(encoder=openai/clip-vit-large-patch14):15."
            )
        if self.candidates < 1:
            raise FoveateError(f"diverse-frames: candidates is a number of frames, not {self.candidates}.")
        if not 0 <= self.uniform <= 1:
            raise FoveateError(f"diverse-frames: uniform is a share, 0 to 1, not {self.uniform}.")

    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """See `FrameSampler.times`."""
        self.check_budget(count)
        times: list[float] = []
        features = []
        for own, batch in contrastive_encoder(self.encoder).frames(
            clip.read(even_times(clip.duration, self.candidates))
        ):
            times += own
            features.append(batch)
        return [times[place] for place in diverse(torch.cat(features), count or 1, self.uniform)]


def diverse(features: Tensor, count: int, uniform: float) -> list[int]:
    """Choose frames; see `DiverseFrames`.

    Args:
        features: (T, D) of the candidates.
        count: Frames that are chosen.
        uniform: Share of them at even steps.

    Returns:
        Their places, ascending; all, where there are no more than `count`.
    """
    number = len(features)
    if number <= count:
        return list(range(number))
    unit = F.normalize(features.float(), dim=1)
    cosine = unit @ unit.T
    even = share_of(uniform, count, "down")
    chosen = torch.linspace(0, number - 1, even, dtype=torch.float64).long().tolist()
    total = cosine[chosen].sum(dim=0)
    total[chosen] = torch.inf
    while len(chosen) < count:
        place = int(total.argmin())
        chosen.append(place)
        total += cosine[place]
        total[place] = torch.inf
    return sorted(chosen)
