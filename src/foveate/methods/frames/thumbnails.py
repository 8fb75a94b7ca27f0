"""Frames at even times, and thumbnails: images whose tiles are some of these frames, small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler, FrameSource, even_times

Place = Literal["after", "before", "alone"]


@dataclass(frozen=True)
class Thumbnails(FrameSampler):
    """Reads frames at even times, and thumbnails after them: images in whose tiles some of these frames are shown.

    Half of TS-LLaVA (Thumbnail-and-Sampling, arXiv 2411.11066); `ts-llava` samples the tokens. The number of frames is
    the budget; thumbnails come on top of it. The frames in the tiles are those at round(linspace(0, T - 1, tiles *
    number)), row by row, in a grid of as equal sides as the number of tiles allows, with more rows than columns: 3 x 2
    for 6. Every frame is averaged over the area of its tile. The paper's V2 is `thumbnails:50` with
    `ts-llava(thumbnails=1):3456`; V1 and V3 have 4 and 8 tiles, U several thumbnails after the frames, Y one before
    them and W several, Z thumbnails alone.

    The authors' code makes thumbnails of frames that are squared and normalised for the encoder already. Here they have
    the size of the frames and are made of whole pixels, so that the processor treats all alike, and a side that the
    tiles do not divide has tiles that differ by one pixel, where the code leaves a margin out. Code that shuffles the
    tiles is left out. A thumbnail has the time of the last frame, or before them of the first. For a model that reads
    two frames at once (Qwen's, GLM-4V) take an even number of frames, and 2 copies.

    Args:
        tiles: Frames in a thumbnail.
        number: Thumbnails; None: one, or as many as all frames fill where they stand alone, in the order of frames.
        place: "after" or "before" the frames, or "alone", without them.
        copies: How often each thumbnail stands.
    """

    tiles: int = 6
    number: int | None = None
    place: Place = "after"
    copies: int = 1

    name: ClassVar[str] = "thumbnails"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = (
        "TS-LLaVA: Constructing Visual Tokens through Thumbnail-and-Sampling for Training-Free Video Large Language "
        "Models"
    )
    paper: ClassVar[str] = "arXiv 2411.11066"
    composes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.tiles, self.copies, 1 if self.number is None else self.number) < 1:
            raise FoveateError("thumbnails: tiles, number and copies are at least 1.")
        if self.place not in get_args(Place):
            raise FoveateError(f"thumbnails: place is after, before or alone, not {self.place!r}.")

    def times(self, clip: FrameSource, count: int | None, question: str | None) -> list[float]:
        """See `FrameSampler.times`."""
        self.check_budget(count)
        return even_times(clip.duration, count or 1)

    def composed(self, frames: np.ndarray, timestamps: Sequence[float]) -> tuple[np.ndarray, list[float]]:
        """See `FrameSampler.composed`.

        Raises:
            FoveateError: there are fewer frames than tiles.
        """
        shown = self._tiles(len(frames))
        made = np.stack([_thumbnail(frames[places]) for places in shown]).repeat(self.copies, axis=0)
        times = list(timestamps)
        if self.place == "alone":
            return made, [times[places[0]] for places in shown for _ in range(self.copies)]
        if self.place == "before":
            return np.concatenate([made, frames]), [times[0]] * len(made) + times
        return np.concatenate([frames, made]), times + [times[-1]] * len(made)

    def _tiles(self, count: int) -> np.ndarray:
        """(number, tiles) which of `count` frames each thumbnail shows."""
        every = self.number is None and self.place == "alone"
        number = count // self.tiles if every else self.number or 1
        wanted = number * self.tiles
        if count < max(wanted, self.tiles):
            raise FoveateError(
                f"thumbnails of {max(wanted, self.tiles)} tiles need as many frames, and the clip has {count}; take "
                "more frames or fewer tiles."
            )
        places = np.arange(wanted) if every else np.rint(np.linspace(0, count - 1, wanted)).astype(int)
        return places.reshape(number, self.tiles)


def tile_grid(count: int) -> tuple[int, int]:
    """Rows and columns of a grid of `count` tiles, as equal as they can be; rows are no fewer than columns."""
    columns = next(number for number in range(math.isqrt(count), 0, -1) if count % number == 0)
    return count // columns, columns


def tiled(frames: Tensor) -> Tensor:
    """An image (C, H, W) whose tiles show frames (n, C, H, W), row by row, each averaged over the area of its tile.

    Raises:
        FoveateError: the frames have fewer pixels on a side than tiles.
    """
    count, channels, height, width = frames.shape
    rows, columns = tile_grid(count)
    if height < rows or width < columns:
        raise FoveateError(f"frames of {width} x {height} pixels are too small for {columns} x {rows} tiles.")
    tops = [row * height // rows for row in range(rows + 1)]
    lefts = [column * width // columns for column in range(columns + 1)]
    image = frames.new_empty(channels, height, width)
    for number, frame in enumerate(frames):
        (top, bottom), (left, right) = (
            edges[place : place + 2] for edges, place in zip((tops, lefts), divmod(number, columns), strict=True)
        )
        image[:, top:bottom, left:right] = F.adaptive_avg_pool2d(frame, (bottom - top, right - left))
    return image


def _thumbnail(frames: np.ndarray) -> np.ndarray:
    """`tiled` for frames (n, H, W, 3), uint8."""
    image = tiled(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
    return image.round().to(torch.uint8).permute(1, 2, 0).numpy()
