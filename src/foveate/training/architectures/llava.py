"""LLaVA with a CLIP tower (a fixed square of patches and a [CLS] token) or an encoder of foveate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from foveate.core.errors import FoveateError
from foveate.core.tokens import encoder_grid
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import named
from foveate.models.encoders import EncoderConfig
from foveate.models.llava import (
    FoveateLlavaConfig,
    FoveateLlavaForConditionalGeneration,
    FoveateLlavaProcessor,
    ViewImageProcessor,
)
from foveate.models.llava.processing import encoder_fields
from foveate.models.llava_uhd.chat_template import CHAT_TEMPLATE
from foveate.training.architectures.architecture import Architecture, Keep


class Llava(Architecture):
    """See `Architecture`. Images are stretched to the tower's square: cropping them would cut off text.

    With `images: {layout: {name: llava-uhd}}` they are several views (`foveate.models.llava.layouts`).
    """

    name = "llava"
    model_class = LlavaForConditionalGeneration
    processor_class = LlavaProcessor
    vision_class = CLIPVisionConfig
    image_settings = ("resample", "rescale_factor", "image_mean", "image_std", "layout")
    tower = ".vision_tower."
    connector = ".multi_modal_projector."
    takes_connectors = True
    takes_encoders = True

    def part_of(self, name: str) -> str:
        """See `Architecture.part_of`; pre-fusion is new as the connector is."""
        return "connector" if ".prefusion." in name else super().part_of(name)

    def processor(
        self,
        vision: Any,
        images: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector | None = None,
    ) -> Any:
        """See `Architecture.processor`.

        Raises:
            FoveateError: the connector cannot divide the tokens of an image, or there is no such layout of views.
        """
        if connector is not None:
            connector.output_grid(encoder_grid(vision, vision.image_size, vision.image_size))
        encoder = isinstance(vision, EncoderConfig)
        side = {"height": vision.image_size, "width": vision.image_size}
        image_processor: Any
        if "layout" in images:
            image_processor = _view_processor(vision, images)
            tokenizer.add_tokens(list(image_processor.view_layout.special_tokens), special_tokens=True)
        else:
            image_processor = CLIPImageProcessor(**images, size=side, crop_size=side, do_center_crop=False)
        ours = encoder or connector is not None or "layout" in images
        processor_class: Any = FoveateLlavaProcessor if ours else LlavaProcessor
        return processor_class(
            image_processor,
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy="full" if encoder else "default",
            num_additional_image_tokens=0 if encoder else 1,
            chat_template=CHAT_TEMPLATE,
            **named(connector),
            **encoder_fields(vision),
        )

    def config(self, vision: Any, text: Any, processor: Any, connector: Connector | None = None) -> Any:
        """See `Architecture.config`; of CLIP features are taken before its last layer, as in the released models."""
        encoder = isinstance(vision, EncoderConfig)
        config_class: Any = FoveateLlavaConfig if isinstance(processor, FoveateLlavaProcessor) else LlavaConfig
        return config_class(
            vision_config=vision,
            text_config=text,
            image_token_index=processor.image_token_id,
            vision_feature_layer=-1 if encoder else -2,
            vision_feature_select_strategy="full" if encoder else "default",
            image_seq_length=encoder_grid(vision, vision.image_size, vision.image_size).size,
            tie_word_embeddings=text.tie_word_embeddings,
            **named(connector),
        )

    def model(self, config: Any) -> Any:
        """See `Architecture.model`; the class of `transformers` where no connector is chosen."""
        return (FoveateLlavaForConditionalGeneration if isinstance(config, FoveateLlavaConfig) else self.model_class)(
            config
        )

    def stages(self, config: Any) -> int:
        """See `Architecture.stages`."""
        return 0

    def stages_of_processor(self, processor: Any) -> int:
        """See `Architecture.stages_of_processor`."""
        return 0

    def token_width(self, config: Any) -> int:
        """See `Architecture.token_width`."""
        return config.vision_config.hidden_size

    def capture_tokens(self, model: Any, keep: Keep) -> None:
        """See `Architecture.watch`; what is kept is the output of the layer whose features the connector reads."""
        tower: Any = model.get_submodule("model.vision_tower")
        if isinstance(tower.config, EncoderConfig):
            tower.register_forward_hook(
                lambda module, args, output: keep("tokens", output.last_hidden_state.flatten(0, 1))
            )
            return

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            keep("cls", hidden[:, 0])
            keep("tokens", hidden[:, 1:].flatten(0, 1))

        # `hidden_states[0]` is the embedding, so that `hidden_states[-2]` is what layer -2 returns.
        layer = model.config.vision_feature_layer
        tower.encoder.layers[layer].register_forward_hook(hook)

    def has_cls(self, config: Any) -> bool:
        """See `Architecture.has_cls`."""
        return not isinstance(config.vision_config, EncoderConfig)

    def has_window(self) -> bool:
        """See `Architecture.has_window`."""
        return True

    def initialise(self, model: Any) -> None:
        """Positions begin as sines and cosines of rows and columns, so that neighbours are alike everywhere.

        Source: the fixed positions of MAE (He et al., 2022, arXiv:2111.06377); here they go on learning.
        """
        if isinstance(model.config.vision_config, EncoderConfig):
            return  # which initializes its own positions
        table = model.model.vision_tower.embeddings.position_embedding.weight
        side, width = math.isqrt(len(table) - 1), table.shape[1]
        frequencies = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
        angles = torch.arange(side)[:, None] * frequencies
        line = torch.cat([angles.sin(), angles.cos()], dim=1)
        rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
        with torch.no_grad():
            table[1:, : 4 * (width // 4)] = torch.cat([rows, columns], dim=-1).flatten(0, 1)

    def enable_windows(self, model: Any) -> None:
        """See `Architecture.take_windows`; every batch of them is put at a random place of the tower's positions."""
        if isinstance(model.config.vision_config, EncoderConfig):
            return  # `images` refuses windows
        embeddings: Any = model.model.vision_tower.embeddings
        original = embeddings.forward
        side = embeddings.image_size // embeddings.patch_size

        def forward(pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
            window = pixel_values.shape[-1] // embeddings.patch_size
            if window == side or options.get("interpolate_pos_encoding"):  # views, which are no windows
                return original(pixel_values, **options)
            row, column = torch.randint(side - window + 1, (2,)).tolist()
            places = 1 + torch.arange(side * side, device=pixel_values.device).view(side, side)
            places = places[row : row + window, column : column + window].flatten()
            pixel_values = pixel_values.to(embeddings.patch_embedding.weight.dtype)
            patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
            patches = patches + embeddings.position_embedding(places)
            first = embeddings.class_embedding + embeddings.position_embedding.weight[0]
            return torch.cat([first.expand(len(patches), 1, -1).to(patches.dtype), patches], dim=1)

        embeddings.forward = forward

    def encode(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """See `Architecture.encode`."""
        model.model.vision_tower(inputs["pixel_values"])

    def images(
        self, processor: Any, pictures: Sequence[Any], window: int | None = None
    ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """See `Architecture.images`."""
        if getattr(processor, "layout", None) is not None:  # `Collator` refuses windows
            inputs = processor.image_processor(images=list(pictures), return_tensors="pt")
            return inputs, [(height, width) for height, width in inputs.pop("original_sizes").tolist()]
        size = {}
        encoder = getattr(processor, "encoder_config", None)
        if window is not None and encoder is not None:
            raise FoveateError(f"`window` is for llava with CLIP; leave it out for the encoder {encoder.model_type}.")
        if window is not None:
            side = window * processor.patch_size
            size = {"size": {"height": side, "width": side}}
        pixels = processor.image_processor(images=list(pictures), return_tensors="pt", **size)["pixel_values"]
        grid = encoder_grid(processor if encoder is None else encoder, *pixels.shape[-2:])
        return {"pixel_values": pixels}, [(grid.rows, grid.columns)] * len(pixels)


def _view_processor(vision: Any, images: Mapping[str, Any]) -> ViewImageProcessor:
    """The image processor of a layout of views, whose side and patches are those of the tower.

    Raises:
        FoveateError: there is no such layout or option, or a setting has no effect on views.
    """
    settings = dict(images)
    layout = settings.pop("layout")
    if "resample" in settings:
        raise FoveateError("model.new.images.resample: the layout of views sets it; leave it out.")
    if isinstance(layout, Mapping):
        layout = {"side": vision.image_size, "patch_size": vision.patch_size, **layout}
    try:
        return ViewImageProcessor(layout, **settings)
    except FoveateError as error:
        raise FoveateError(f"model.new.images.layout: {error}") from error
