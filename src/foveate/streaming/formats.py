"""How a model family writes a clip: text around frames, pixels, and positions.

A prompt is the text before the clip, the clip, and the text after it with the question. The chat template of the
processor gives both texts. A stream writes the clip step by step, as the model's processor and `get_rope_index` write a
whole one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate.answering.conversations import tokenizer_of
from foveate.core.errors import FoveateError, Refusal
from foveate.core.tokens import Grid
from foveate.families import Family


@dataclass
class Cursor:
    """Where a stream is in the positions of its prompt.

    Args:
        clip: Position at which the clip begins.
        text: Position of text that would follow now.
        steps: Steps so far.
        origin: Time of the first step, in seconds.
        cut: Positions that were taken out of the clip's time axis, where that has positions of its own.
        selected: Whether a plan has left out tokens of a step.
    """

    clip: int
    text: int
    steps: int = 0
    origin: float = 0.0
    cut: int = 0
    selected: bool = False


@dataclass(frozen=True)
class PlacedStep:
    """Positions of one step.

    Args:
        positions: (axes, L) of its text and tokens.
        start: Where it begins on the axis that grows with time.
    """

    positions: Tensor
    start: int


class ClipFormat(ABC):
    """How one family writes clips.

    Args:
        core: The model without its output layer.
        processor: Its processor.
    """

    #: Factors by which positions of each axis fall where an interval of time is cut out.
    time_axes: ClassVar[tuple[int, ...]]

    def __init__(self, core: Any, processor: Any) -> None:
        self.core, self.processor = core, processor

    @property
    def frames(self) -> int:
        """Frames of one step."""
        return 1

    def pixels(self, frames: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Arguments of `get_video_features` for the frames (H, W, 3) of one step; a missing one repeats the last."""
        inputs = self.processor.video_processor(
            videos=[np.stack(frames)], do_sample_frames=False, return_tensors="pt", return_metadata=False
        )
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}

    def text_around(self, times: Sequence[float]) -> tuple[list[int], list[int]]:
        """Ids of text before and after the tokens of a step."""
        return [], []

    def separator(self) -> Tensor | None:
        """(1, D) embedding that ends a clip, if there is one."""
        return None

    @abstractmethod
    def place(self, cursor: Cursor, grid: Grid, times: Sequence[float], before: int, after: int) -> PlacedStep:
        """Positions of the next step, to which the cursor moves on.

        Args:
            cursor: Where the stream is.
            grid: Rows and columns of its tokens.
            times: Times of its frames, in seconds.
            before: Ids of text before the tokens.
            after: Ids of text after them.
        """

    def cut_out(self, cursor: Cursor, positions: int) -> None:
        """Take positions out of the clip: later steps come earlier."""
        cursor.text -= positions


class _Qwen2Format(ClipFormat):
    """Qwen2-VL: three axes; the first counts steps, and the other two begin anew in every step."""

    time_axes: ClassVar[tuple[int, ...]] = (1, 0, 0)

    @property
    def frames(self) -> int:
        return int(self.processor.video_processor.temporal_patch_size)

    def offset(self, cursor: Cursor, time: float) -> int:
        """Position of a step on the axis of time, counted from the first one."""
        return cursor.steps

    def place(self, cursor: Cursor, grid: Grid, times: Sequence[float], before: int, after: int) -> PlacedStep:
        if cursor.steps == 0:
            cursor.origin = times[0]
        start = cursor.clip + self.offset(cursor, times[0]) - cursor.cut
        rows, columns = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()]) + cursor.clip
        cursor.text = cursor.clip + max(grid)
        cursor.steps += 1
        return PlacedStep(torch.cat([torch.full((1, grid.size), start), place]), start)

    def cut_out(self, cursor: Cursor, positions: int) -> None:
        cursor.cut += positions


class _Qwen25Format(_Qwen2Format):
    """Qwen2.5-VL: as Qwen2-VL, and the first axis counts time, `tokens_per_second`."""

    def offset(self, cursor: Cursor, time: float) -> int:
        # A product such as 2.9999999 is 3: the model multiplies numbers of steps by an interval.
        product = round((time - cursor.origin) * self.core.config.vision_config.tokens_per_second, 5)
        return math.floor(product)


class _Qwen3Format(ClipFormat):
    """Qwen3-VL: every step is an image of its own behind its time, written as text; all axes grow."""

    time_axes: ClassVar[tuple[int, ...]] = (1, 1, 1)

    @property
    def frames(self) -> int:
        return int(self.processor.video_processor.temporal_patch_size)

    def text_around(self, times: Sequence[float]) -> tuple[list[int], list[int]]:
        time = (times[0] + times[-1]) / 2
        tokenizer = tokenizer_of(self.processor)
        written = tokenizer(f"<{time:.1f} seconds>", add_special_tokens=False)["input_ids"]
        return [*written, self.processor.vision_start_token_id], [self.processor.vision_end_token_id]

    def place(self, cursor: Cursor, grid: Grid, times: Sequence[float], before: int, after: int) -> PlacedStep:
        start = cursor.text
        first = start + before
        rows, columns = torch.meshgrid(torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
        tokens = torch.stack([torch.zeros(grid.size, dtype=torch.int64), rows.flatten(), columns.flatten()]) + first
        end = first + max(grid)
        text = [torch.arange(begin, begin + count).expand(3, -1) for begin, count in ((start, before), (end, after))]
        cursor.text = end + after
        cursor.steps += 1
        return PlacedStep(torch.cat([text[0], tokens, text[1]], dim=1), start)


class _OneVisionFormat(ClipFormat):
    """LLaVA-OneVision: frames one after the other on one axis, and a newline token at the end of the clip."""

    time_axes: ClassVar[tuple[int, ...]] = (1,)

    def separator(self) -> Tensor:
        return self.core.image_newline[None]

    def place(self, cursor: Cursor, grid: Grid, times: Sequence[float], before: int, after: int) -> PlacedStep:
        start = cursor.text
        cursor.text += grid.size
        cursor.steps += 1
        return PlacedStep(torch.arange(start, cursor.text)[None], start)


FORMATS: dict[str, type[ClipFormat]] = {
    "qwen2-vl": _Qwen2Format,
    "qwen2.5-vl": _Qwen25Format,
    "qwen3-vl": _Qwen3Format,
    "llava-onevision": _OneVisionFormat,
}
"""Families that can stream, by name."""

_REASONS = {
    "gemma4": "tokens of a frame attend to each other in masks that its core makes of a whole prompt",
    "glm-4v": "its processor writes clips with the placeholders of images, which no stream follows yet",
    "internvl": "its processor writes frames of clips as numbered images, which no stream follows yet",
    "kimi-k2.5": "its encoder joins the frames of a chunk, and transformers refuses chunks of several frames",
    "foveate-llava-video": "its connectors merge the patches of many frames, which a stream does not have at once",
    "minicpm-v-4.6": "its processor writes frames of clips as images with slices, which no stream follows yet",
    "qwen3.5": "most of its layers are linear attention, whose state mixes all frames, so that none can be evicted",
}
"""Why other families with clips cannot."""


def format_of(family: Family, core: Any, processor: Any) -> ClipFormat:
    """The clip format of a model.

    Raises:
        FoveateError: its family cannot stream.
    """
    if family.name not in FORMATS:
        reason = "it takes no clips" if not hasattr(core, "get_video_features") else _REASONS.get(family.name)
        reason = reason or "its clips are written in another way"
        possible = ", ".join(sorted(FORMATS))
        raise FoveateError(
            Refusal("no-stream", f"{family.title} cannot read a stream: {reason}", f"families that can: {possible}")
        )
    return FORMATS[family.name](core, processor)
