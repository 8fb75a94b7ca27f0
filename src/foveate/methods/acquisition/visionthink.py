"""VisionThink: the model asks for the image at full resolution when it needs it (arXiv 2507.13348)."""

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

_DESCRIPTION = "Show the image at its full resolution, which has twice the width and height of the first one."
_PARAMETERS = {
    "type": "object",
    "properties": {
        "action": {
            "type": "string",
            "enum": ["resize"],
            "description": "Always `resize`. Use it only if the first image does not show what the answer needs.",
        }
    },
    "required": ["action"],
}


@dataclass(frozen=True)
class VisionThink(AcquisitionMethod):
    """Shows the model the image at half width and height, and the original as well if the model asks for it.

    The first turn costs a quarter of the image tokens. A call of the tool `resize_image` starts a second turn with the
    original as another image: the context then holds 1/4 + 1 of the tokens. Trained with GRPO
    (`foveate train-method visionthink`), whose reward prefers right answers from the small image.

    Where the authors' code (dvlab-research/VisionThink, `scripts/vllm_tool.py`) differs: it reads a call with a regular
    expression and checks its action alone, here the JSON must be the whole content of the tags. Its training helper can
    enlarge the small image in place of the original; here the original is always shown, as in its evaluation. The
    prompts here are in other words than theirs: for a model that was trained on theirs, give them in a file.
    """

    name: ClassVar[str] = "visionthink"
    title: ClassVar[str] = "VisionThink: Smart and Efficient Vision Language Model via Reinforcement Learning"
    paper: ClassVar[str] = "arXiv 2507.13348"
    tool: ClassVar[str] = "resize_image"
    description: ClassVar[str] = _DESCRIPTION
    parameters: ClassVar[Mapping[str, Any]] = _PARAMETERS
    default_prompts: ClassVar[Prompts] = Prompts(
        system_prompt("resize_image", _DESCRIPTION, _PARAMETERS),
        QUESTION,
        "<tool_response>\nThe image at full resolution:\n{image}\n</tool_response>\nThink again inside <think> and "
        "</think>, then write the answer inside <answer> and </answer>.",
    )

    def box_of(self, arguments: dict[str, Any], size: tuple[int, int]) -> PixelBox:
        """The whole image."""
        if arguments["action"] != "resize":
            raise ToolCallError(
                f"the tool {self.tool} has the action 'resize' alone, not {str(arguments['action'])[:100]!r}."
            )
        return 0, 0, *size
