"""GLM-4.1V, GLM-4.5V and GLM-4.6V: as Qwen2-VL, with frames of clips as images in the prompt."""

from __future__ import annotations

from typing import Any, ClassVar

from foveate.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL):
    """GLM-4V: frames of clips have the placeholder of images; a prompt holds either images or clips."""

    name: ClassVar[str] = "glm-4v"
    title: ClassVar[str] = "GLM-4V"
    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v")
    raster_features: ClassVar = None  # clips are written frame by frame, with text between
    example: ClassVar[str] = "zai-org/GLM-4.1V-9B-Thinking"
    written_times: ClassVar = "after"

    def placeholder(self, core: Any, modality: str) -> int:
        """Images and clips have the same."""
        return core.config.image_token_id
