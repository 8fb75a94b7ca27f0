"""Layout of the images of a packed batch in one sequence.

All tokens of all images are one tensor (L, D). Images of equal size stand next to each other, so that each
group of them is a plain batch: no mask, no padding, and no Python loop over anything but different sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class Group:
    """`count` images of (height, width) tokens, consecutive from token `start`."""

    start: int
    count: int
    height: int
    width: int

    @property
    def length(self) -> int:
        """Tokens of one image."""
        return self.height * self.width

    @property
    def stop(self) -> int:
        """One past the last token of the group."""
        return self.start + self.count * self.length


@dataclass(frozen=True)
class Layout:
    """The groups of a packed batch after `merges` stages, and the order of its images.

    `images[i]` is the place in the caller's batch of the i-th image of the packed sequence.
    """

    groups: tuple[Group, ...]
    images: tuple[int, ...]
    merges: int = 0

    @classmethod
    def from_grids(cls, grid_hws: torch.Tensor, num_tokens: int, num_stages: int) -> Layout:
        """Layout of grids (n, 2), after checking them.

        Raises:
            FoveateError: if the grids do not cover `num_tokens` tokens, are empty, or if a side is not a
                multiple of 2^num_stages.
        """
        if grid_hws.ndim != 2 or grid_hws.shape[1] != 2 or len(grid_hws) == 0:
            raise FoveateError(f"grid_hws must be (images, 2) with at least one image, not {tuple(grid_hws.shape)}.")
        grids = [(int(height), int(width)) for height, width in grid_hws.tolist()]
        factor = 2**num_stages
        for index, (height, width) in enumerate(grids):
            if height < 1 or width < 1:
                raise FoveateError(f"image {index} has an empty grid of {height} x {width} patches.")
            if height % factor or width % factor:
                raise FoveateError(
                    f"image {index} has {height} x {width} patches, but {num_stages} stages need both sides to be "
                    f"multiples of {factor}; resize the image to a multiple of the model's unit first."
                )
        expected = sum(height * width for height, width in grids)
        if expected != num_tokens:
            raise FoveateError(f"grid_hws describes {expected} patches, but pixel_values holds {num_tokens}.")

        images = tuple(sorted(range(len(grids)), key=lambda index: grids[index]))
        groups: list[Group] = []
        for index in images:
            height, width = grids[index]
            last = groups[-1] if groups else None
            if last is not None and (last.height, last.width) == (height, width):
                groups[-1] = replace(last, count=last.count + 1)
            else:
                groups.append(Group(last.stop if last else 0, 1, height, width))
        return cls(tuple(groups), images)

    @property
    def num_tokens(self) -> int:
        """Length L of the packed sequence."""
        return self.groups[-1].stop

    @cached_property
    def grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of every image, in packed order."""
        return [(group.height, group.width) for group in self.groups for _ in range(group.count)]

    def merged(self) -> Layout:
        """The layout after one stage: every side halved."""
        groups: list[Group] = []
        for group in self.groups:
            start = groups[-1].stop if groups else 0
            groups.append(Group(start, group.count, group.height // 2, group.width // 2))
        return Layout(tuple(groups), self.images, self.merges + 1)

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """(L, D) tokens as (L / 4, 4, D) windows of 2 x 2, windows and their tokens row-major."""
        width = x.shape[-1]
        parts = [
            x[group.start : group.stop]
            .view(group.count, group.height // 2, 2, group.width // 2, 2, width)
            .transpose(2, 3)
            .reshape(-1, 4, width)
            for group in self.groups
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of images in the caller's order -> packed order."""
        return self._reorder(x, self.images, self._caller_lengths)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """Rows in packed order -> the caller's order. Inverse of `pack`."""
        return self._reorder(x, self._places, [height * width for height, width in self.grids])

    def grid_hws(self, device: torch.device | str) -> torch.Tensor:
        """Grids (n, 2) in the caller's order."""
        return torch.tensor([self.grids[place] for place in self._places], dtype=torch.long, device=device)

    @cached_property
    def _places(self) -> list[int]:
        """Place in the packed sequence of each of the caller's images."""
        places = [0] * len(self.images)
        for place, image in enumerate(self.images):
            places[image] = place
        return places

    @cached_property
    def _caller_lengths(self) -> list[int]:
        return [self.grids[place][0] * self.grids[place][1] for place in self._places]

    def _reorder(self, x: torch.Tensor, order, lengths: list[int]) -> torch.Tensor:
        if all(place == index for index, place in enumerate(order)):
            return x
        parts = x.split(lengths)
        return torch.cat([parts[place] for place in order])


__all__ = ["Group", "Layout"]
