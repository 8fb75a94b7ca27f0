"""Qwen2.5-VL: native resolution, 2 x 2 patches a token, positions in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.video_utils import VideoMetadata

from foveate.clips import Clip
from foveate.models.connectors.connector import Connector
from foveate.models.llava_uhd.chat_template import CLIP_CHAT_TEMPLATE
from foveate.training.architectures.architecture import Architecture, Keep, clip_tokenizer


class Qwen25VL(Architecture):
    """See `Architecture`."""

    name = "qwen2.5-vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    processor_class = Qwen2_5_VLProcessor
    vision_class = Qwen2_5_VLVisionConfig
    image_settings = ("min_pixels", "max_pixels", "resample", "rescale_factor", "image_mean", "image_std", "clips")
    takes_clips = True
    tower = ".visual."
    #: The merger joins 2 x 2 patches and is what connects; recipes call it `stages`, as losses on tokens reach it.
    stage = ".visual.merger."

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `Architecture.tokenizer`; there is one for frames of a video too."""
        return clip_tokenizer()

    def processor(
        self,
        vision: Any,
        images: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector | None = None,
    ) -> Any:
        """See `Architecture.processor`; sizes of the setting `clips` are those of a frame."""
        settings = dict(images)
        clips = settings.pop("clips", {})
        shared = {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }
        return Qwen2_5_VLProcessor(
            Qwen2VLImageProcessor(**settings, **shared),
            tokenizer,
            Qwen2VLVideoProcessor(**clips, **shared),
            chat_template=CLIP_CHAT_TEMPLATE,
        )

    def config(self, vision: Any, text: Any, processor: Any, connector: Connector | None = None) -> Any:
        """See `Architecture.config`."""
        vision.out_hidden_size = text.hidden_size
        return Qwen2_5_VLConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            image_token_id=processor.image_token_id,
            video_token_id=processor.video_token_id,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    def has_window(self) -> bool:
        """See `Architecture.has_window`."""
        return True

    def stages(self, config: Any) -> int:
        """See `Architecture.stages`."""
        return config.vision_config.spatial_merge_size.bit_length() - 1

    def stages_of_processor(self, processor: Any) -> int:
        """See `Architecture.stages_of_processor`."""
        return processor.image_processor.merge_size.bit_length() - 1

    def token_width(self, config: Any) -> int:
        """See `Architecture.token_width`; the merger writes in the width of the language model."""
        return config.vision_config.out_hidden_size

    def capture_tokens(self, model: Any, keep: Keep) -> None:
        """See `Architecture.watch`."""
        tower = model.get_submodule("model.visual")
        tower.register_forward_hook(lambda module, args, output: keep("tokens", output.pooler_output))

    def encode(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """See `Architecture.encode`."""
        model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])

    def images(
        self, processor: Any, pictures: Sequence[Any], window: int | None = None
    ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """See `Architecture.images`; a window is a number of pixels here, of any shape."""
        size = {}
        if window is not None:
            pixels = (window * processor.image_processor.patch_size) ** 2
            size = {"size": {"shortest_edge": pixels, "longest_edge": pixels}}
        processed = processor.image_processor(images=list(pictures), return_tensors="pt", **size)
        grids = [(rows, columns) for _, rows, columns in processed["image_grid_thw"].tolist()]
        return {"pixel_values": processed["pixel_values"], "image_grid_thw": processed["image_grid_thw"]}, grids

    def clips(
        self, processor: Any, clips: Sequence[Clip]
    ) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]]]:
        """See `Architecture.clips`."""
        metadata = [VideoMetadata(**clip.metadata) for clip in clips]
        processed = processor.video_processor(
            videos=[clip.frames for clip in clips],
            video_metadata=metadata,
            do_sample_frames=False,
            return_tensors="pt",
        )
        depth = processor.video_processor.temporal_patch_size
        seconds = torch.tensor([depth / one.sampled_fps for one in metadata])
        inputs = {name: processed[name] for name in ("pixel_values_videos", "video_grid_thw")}
        return inputs | {"second_per_grid_ts": seconds}, [tuple(grid) for grid in inputs["video_grid_thw"].tolist()]

    def text_inputs(self, processor: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Architecture.text_inputs`: which tokens are an image's (1) and a clip's (2), for the positions."""
        images, clips = input_ids == processor.image_token_id, input_ids == processor.video_token_id
        return {"mm_token_type_ids": images.int() + 2 * clips.int()}
