"""AdaptVision: the model asks for a crop of the original image when it needs it (arXiv 2512.03794)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.core.acquisition import (
    QUESTION,
    AcquisitionMethod,
    PixelBox,
    Prompts,
    ToolCallError,
    system_prompt,
)

#: A box may be this many times as long as it is wide.
LONGEST_SHAPE = 200

_DESCRIPTION = "Show a region of the image at the resolution of the original."
_PARAMETERS = {
    "type": "object",
    "properties": {
        "bbox_2d": {
            "type": "array",
            "items": {"type": "integer"},
            "minItems": 4,
            "maxItems": 4,
            "description": "Left, top, right and bottom edge of the region, in pixels of the image that was shown.",
        }
    },
    "required": ["bbox_2d"],
}


@dataclass(frozen=True)
class AdaptVision(AcquisitionMethod):
    """Shows the model the image at half width and height, and a crop of the original if the model asks for a region.

    A call of the tool `request_local_region` names a box `[left, top, right, bottom]` in whole pixels of the small
    image. Clamped to that image and times two, it is cropped from the original and shown as another image, so that the
    context holds the tokens of the small image and of the crop. Trained with DTPO (`foveate train-method adaptvision`).

    Where the authors' code (AdaptVision/AdaptVision, `scripts/vllm_adaptvision.py`) differs: it takes boxes of numbers
    that are not whole, and its crops are resized to multiples of 28 pixels, which here the model's processor does by
    its own rule.
    """

    name: ClassVar[str] = "adaptvision"
    title: ClassVar[str] = "AdaptVision: Efficient Vision-Language Models via Adaptive Visual Acquisition"
    paper: ClassVar[str] = "arXiv 2512.03794"
    tool: ClassVar[str] = "request_local_region"
    description: ClassVar[str] = _DESCRIPTION
    parameters: ClassVar[Mapping[str, Any]] = _PARAMETERS
    default_prompts: ClassVar[Prompts] = Prompts(
        system_prompt("request_local_region", _DESCRIPTION, _PARAMETERS),
        QUESTION,
        "<tool_response>\nThe region of the original image:\n{image}\n</tool_response>\nThink again inside <think> and "
        "</think>, then write the answer inside <answer> and </answer>.",
    )

    def box_of(self, arguments: dict[str, Any], size: tuple[int, int]) -> PixelBox:
        """The box in pixels of the original, clamped to it."""
        box = arguments["bbox_2d"]
        if not isinstance(box, list) or len(box) != 4 or not all(type(edge) is int for edge in box):
            raise ToolCallError(f"the tool {self.tool} takes a box of four whole numbers, not {str(box)[:100]}.")
        shown = self.reduced_size(size)
        enlarged = shown != tuple(side // self.reduction for side in size)  # to the least side, or from 1 pixel
        scales = [side / small if enlarged else self.reduction for side, small in zip(size, shown, strict=True)]
        left, top, right, bottom = (
            int(max(0, min(edge, shown[axis % 2])) * scales[axis % 2]) for axis, edge in enumerate(box)
        )
        if left >= right or top >= bottom:
            raise ToolCallError(
                f"the model asks for the box {box}, which is empty in the image of {shown[0]} x {shown[1]} pixels that "
                "it was shown."
            )
        width, height = right - left, bottom - top
        if max(width, height) > LONGEST_SHAPE * min(width, height):
            raise ToolCallError(
                f"the model asks for the box {box}, whose sides are as 1 to {max(width, height) // min(width, height)};"
                f" at most {LONGEST_SHAPE} is possible."
            )
        return left, top, right, bottom
