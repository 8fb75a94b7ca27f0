"""HiRED: the thumbnail divides the budget over the tiles, [CLS] attention picks in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, select_tokens, topk_indices
from foveate.methods.shared.tiles import apportion, shown_by


@dataclass(frozen=True)
class HiRED(PreLLMMethod):
    """Divides the budget by early [CLS] attention on the thumbnail; late [CLS] attention picks in each tile.

    The thumbnail gets int(alpha T) of a budget of T. Its int((1 - alpha) N) patches with the greatest [CLS] attention
    at block 0 are its content, and the rest of T is divided over the tiles in proportion to the content in each. Every
    crop keeps the patches with the greatest [CLS] attention at the block whose output the language model reads (HiRED,
    arXiv 2408.10945, AAAI 2025). A plain image is ranked by that attention alone. Newline tokens are dropped first.

    A tile has the content whose middle it shows, the budget is met exactly, and what a full tile cannot take goes to
    the others. The authors' code cuts the raster into runs of equal length, which are strips and not tiles, and rounds
    down (`reference`); its padding spends budget before it is cut away.

    Args:
        alpha: Share of the budget for the thumbnail, 0 to 1.
        reference: Strips and rounding as in the authors' code; fewer tokens than the budget may stay.
    """

    alpha: float = 0.5
    reference: bool = False

    name: ClassVar[str] = "hired"
    mechanism: ClassVar = ("attention",)
    modality: ClassVar = ("image",)
    title: ClassVar[str] = "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution VLMs"
    paper: ClassVar[str] = "arXiv 2408.10945"
    handles_tiles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise FoveateError(f"hired: alpha is a share from 0 to 1, not {self.alpha}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row of the block that is read and of the first."""
        return Need("cls_attention", tower.last_used), Need("cls_attention", 0)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        late, early = (tokens.get(need) for need in self.needs(tokens.tower))
        if len(tokens.crops) == 1:
            indices = tokens.crops[0].present
            return Selection(indices[topk_indices(late[indices], count)])
        thumbnail, tiles = tokens.thumbnail, [crop for crop in tokens.crops if crop.kind == "tile"]
        if thumbnail is None or not tiles:
            return self._by_crop(tokens, count)
        sizes = [len(tile.present) for tile in tiles]
        thumbnail_count = min(share_of(self.alpha, count, "down"), len(thumbnail.present))
        if not self.reference:
            thumbnail_count = max(thumbnail_count, count - sum(sizes))
        is_content = torch.zeros_like(thumbnail.index, dtype=torch.bool)
        present = thumbnail.index >= 0
        content_count = share_of(1 - self.alpha, len(thumbnail.present), "down")
        is_content[present.nonzero().flatten()[topk_indices(early[thumbnail.present], content_count)]] = True
        if self.reference:
            strip = torch.arange(len(is_content), device=is_content.device) * len(tiles) // len(is_content)
            content = is_content.new_zeros(len(tiles), dtype=torch.float32).index_add_(0, strip, is_content.float())
            shares = (content / content.sum().clamp(min=1) * (count - thumbnail_count)).int().tolist()
            shares = [min(share, size) for share, size in zip(shares, sizes, strict=True)]
        else:
            content = (shown_by(tiles, thumbnail) & is_content).sum(dim=1)
            shares = apportion(count - thumbnail_count, content.tolist(), sizes)
        picks: list[Tensor] = []
        for crop, share in zip([thumbnail, *tiles], [thumbnail_count, *shares], strict=True):
            picks.append(crop.present[topk_indices(late[crop.present], share)])
        return select_tokens(torch.cat(picks))
