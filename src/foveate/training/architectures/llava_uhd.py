"""LLaVA-UHD v3: ViT-UHD with its stages, at native resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import named
from foveate.models.encoders import EncoderConfig
from foveate.models.llava.processing import encoder_fields
from foveate.models.llava_uhd.configuration import LlavaUHDConfig, token_multiple
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration
from foveate.models.llava_uhd.processing import LlavaUHDProcessor
from foveate.models.vit_uhd.configuration import ViTUHDConfig
from foveate.training.architectures.architecture import Architecture, Keep


class LlavaUHD(Architecture):
    """See `Architecture`; with an encoder of foveate images are at native resolution, too."""

    name = "llava-uhd"
    model_class = LlavaUHDForConditionalGeneration
    processor_class = LlavaUHDProcessor
    vision_class = ViTUHDConfig
    # Patch size and stages follow the vision tower.
    image_settings = (
        "scale_resolution",
        "min_resolution",
        "max_edge",
        "upscale_factor",
        "resample",
        "rescale_factor",
        "image_mean",
        "image_std",
        "trained_size",
        "trained_text_height",
    )
    tower = ".vision_tower."
    stage = ".merger."
    connector = ".multi_modal_projector."
    takes_connectors = True
    takes_encoders = True

    def part_of(self, name: str) -> str:
        """See `Architecture.part_of`; modules between the layers of the language model are new as the connector is."""
        return "connector" if ".vision_remember." in name else super().part_of(name)

    def processor(
        self,
        vision: Any,
        images: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector | None = None,
    ) -> Any:
        """See `Architecture.processor`."""
        if isinstance(vision, EncoderConfig):
            grid = {"patch_size": vision.multiple, "num_stages": 0}
        else:
            grid = {"patch_size": vision.patch_size, "num_stages": vision.num_stages}
        if connector is not None:
            grid["token_multiple"] = token_multiple(vision, connector)
        image_processor = LlavaUHDImageProcessor(**images, **grid)
        return LlavaUHDProcessor(image_processor, tokenizer, **named(connector), **encoder_fields(vision))

    def config(self, vision: Any, text: Any, processor: Any, connector: Connector | None = None) -> Any:
        """See `Architecture.config`."""
        fields = named(connector)
        return LlavaUHDConfig(vision_config=vision, text_config=text, image_token_id=processor.image_token_id, **fields)

    def stages(self, config: Any) -> int:
        """See `Architecture.stages`; tokens of encoders are counted by their own grid."""
        return getattr(config.vision_config, "num_stages", 0)

    def unit(self, config: Any) -> int:
        """See `Architecture.unit`."""
        unit = super().unit(config)
        return unit // config.vision_config.patch_size * config.square_size

    def stages_of_processor(self, processor: Any) -> int:
        """See `Architecture.stages_of_processor`."""
        return processor.image_processor.num_stages

    def token_width(self, config: Any) -> int:
        """See `Architecture.token_width`."""
        return config.vision_config.hidden_size

    def capture_tokens(self, model: Any, keep: Keep) -> None:
        """See `Architecture.watch`."""
        tower: Any = model.get_submodule("model.vision_tower")

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            keep("tokens", output.last_hidden_state)
            keep("grids", output.grid_hws)

        tower.register_forward_hook(hook)
        if self.has_windows(model.config):
            last = tower.encoder.blocks[tower.config.merger_layer_index[-1]].merger
            last.register_forward_pre_hook(lambda module, args: keep("windows", args[0]))

    def has_windows(self, config: Any) -> bool:
        """See `Architecture.has_windows`."""
        return self.stages(config) > 0

    def encode(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """See `Architecture.encode`."""
        model.model.vision_tower(pixel_values=inputs["pixel_values"], grid_hws=inputs["grid_hws"])

    def images(
        self, processor: Any, pictures: Sequence[Any], window: int | None = None
    ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """See `Architecture.images`."""
        processed = processor.image_processor(images=list(pictures), return_tensors="pt")
        grids = [(rows, columns) for rows, columns in processed["grid_hws"].tolist()]
        if processor.encoder_config is not None:
            grids = [tuple(processor.encoder_grid(rows, columns)) for rows, columns in grids]
        return {"pixel_values": processed["pixel_values"], "grid_hws": processed["grid_hws"]}, grids
