"""LLaVA for clips: a CLIP or SigLIP tower or an encoder of foveate, and a video connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import CLIPImageProcessor, PreTrainedTokenizerBase, SiglipVisionConfig

from foveate.clips import Clip
from foveate.models.connectors.registry import named
from foveate.models.encoders import EncoderConfig
from foveate.models.llava.processing import encoder_fields
from foveate.models.llava_uhd.chat_template import CLIP_CHAT_TEMPLATE
from foveate.models.llava_video import (
    FoveateLlavaVideoConfig,
    FoveateLlavaVideoForConditionalGeneration,
    FoveateLlavaVideoProcessor,
)
from foveate.models.video_connectors import VideoConnector, video_connector_of_sizes
from foveate.training.architectures.architecture import clip_tokenizer
from foveate.training.architectures.llava import Llava
from foveate.training.examples import Example


class LlavaVideo(Llava):
    """See `Architecture`. Images and frames are stretched to the tower's square; an image is a clip of equal frames."""

    name = "llava-video"
    model_class = FoveateLlavaVideoForConditionalGeneration
    processor_class = FoveateLlavaVideoProcessor
    vision_classes: ClassVar[Mapping[str, type]] = {"siglip_vision_model": SiglipVisionConfig}
    image_settings = ("resample", "rescale_factor", "image_mean", "image_std")
    takes_clips = True
    takes_instructions = True

    def part_of(self, name: str) -> str:
        """See `Architecture.part_of`; what reads a clip in decoder layers and what reads the question are new too."""
        new = (".memory_readers.", ".instruction_encoder.")
        return "connector" if any(part in name for part in new) else super().part_of(name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `Architecture.tokenizer`."""
        return clip_tokenizer()

    def connector_of(self, kind: str, options: Mapping[str, Any]) -> VideoConnector:
        """See `Architecture.connector_of`: one of `foveate.models.video_connectors`."""
        return video_connector_of_sizes(kind, options)

    def processor(
        self, vision: Any, images: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, connector: Any = None
    ) -> Any:
        """See `Architecture.processor`."""
        side = {"height": vision.image_size, "width": vision.image_size}
        clip = _has_cls(vision)
        return FoveateLlavaVideoProcessor(
            CLIPImageProcessor(**images, size=side, crop_size=side, do_center_crop=False),
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy="default" if clip else "full",
            num_additional_image_tokens=int(clip),
            chat_template=CLIP_CHAT_TEMPLATE,
            **named(connector),
            **encoder_fields(vision),
        )

    def config(self, vision: Any, text: Any, processor: Any, connector: Any = None, instruction: Any = None) -> Any:
        """See `Architecture.config`; of CLIP features are taken before its last layer."""
        clip = _has_cls(vision)
        return FoveateLlavaVideoConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=processor.image_token_id,
            video_token_id=processor.video_token_id,
            vision_feature_layer=-2 if clip else -1,
            vision_feature_select_strategy="default" if clip else "full",
            tie_word_embeddings=text.tie_word_embeddings,
            instruction_config=instruction,
            **named(connector),
        )

    def model(self, config: Any) -> Any:
        """See `Architecture.model`."""
        return self.model_class(config)

    def unit(self, config: Any) -> int:
        """See `Architecture.unit`; the square of the tower has whole patches, which connectors divide as they can."""
        return config.vision_config.patch_size

    def capture_tokens(self, model: Any, keep: Any) -> None:
        """See `Architecture.capture_tokens`; nothing is kept, for no loss reads the tokens of clips."""

    def has_cls(self, config: Any) -> bool:
        """See `Architecture.has_cls`."""
        return False

    def has_window(self) -> bool:
        """See `Architecture.has_window`."""
        return False

    def initialise(self, model: Any) -> None:
        """See `Llava.initialise`."""
        if _has_cls(model.config.vision_config):
            super().initialise(model)

    def enable_windows(self, model: Any) -> None:
        """See `Architecture.enable_windows`; there are none."""

    def clips(
        self, processor: Any, clips: Sequence[Clip]
    ) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]]]:
        """See `Architecture.clips`."""
        inputs, sizes = processor.clip_inputs([clip.frames for clip in clips], [clip.timestamps for clip in clips])
        return inputs, [(frames, *processor.frame_grid(height, width)) for frames, height, width in sizes]

    def instructions(self, processor: Any, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """See `Architecture.instructions`."""
        if not processor.connector.reads_text:
            return {}
        asked = [example.instruction() for example in examples]
        counts = ([len(kind) for kind in kinds] for kinds in zip(*((e.images, e.clips) for e in examples), strict=True))
        return processor.instruction_ids(asked, *counts)


def _has_cls(vision: Any) -> bool:
    """Whether a tower puts [CLS] before the patches, as CLIP does."""
    return not isinstance(vision, (EncoderConfig, SiglipVisionConfig))
