"""Base class of training-free methods on clips."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.errors import FoveateError, Refusal
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class VideoMethod(PreLLMMethod):
    """A method that selects or merges the visual tokens of a whole clip, before the language model reads them.

    It receives all frames at once, so that it can compare them and give each a share of the budget by what it shows.
    An image is a clip of one frame, and every crop of a tiled image is one by itself, with its share of the budget.
    Methods that treat every frame by itself derive from `PreLLMMethod`, which divides the budget of a clip over its
    frames.
    """

    modality: ClassVar = ("video",)
    handles_tiles: ClassVar[bool] = True

    @abstractmethod
    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """Choose `count` tokens of a clip, 0 < count < number of tokens in its frames.

        `tokens.frames` is (T, N, D) with T >= 1, `tokens.frame_indices` (T, N) their indices; see `PreLLMMethod.select`
        for `count` = 0.
        """

    def takes_whole(self, tokens: VisualTokens) -> bool:
        """See `PreLLMMethod.takes_whole`: clips; crops of a tiled image are separate."""
        return tokens.is_clip

    def seconds(self, tokens: VisualTokens) -> Tensor:
        """(T,) the time of every frame.

        Raises:
            FoveateError: it is not known.
        """
        if tokens.timestamps is None:
            raise FoveateError(
                Refusal(
                    "needs-timestamps",
                    f"{self.name} needs the time of every frame, which neither the model call nor the prompt says",
                    "take a model with timestamps, such as Qwen2.5-VL (second_per_grid_ts) or Qwen3-VL (in the prompt; "
                    "read with the tokenizer next to the weights or compress(..., processor=...))",
                )
            )
        return tokens.timestamps
