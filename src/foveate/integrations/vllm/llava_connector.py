"""LLaVA with a connector of foveate in vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig  # ty: ignore[import-not-found]
from vllm.model_executor.models.llava import (  # ty: ignore[import-not-found]
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaImagePixelInputs,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
    init_vision_tower_for_llava,
)
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix  # ty: ignore[import-not-found]
from vllm.multimodal import MULTIMODAL_REGISTRY  # ty: ignore[import-not-found]

from foveate.core.grouping import indices_by_value
from foveate.core.tokens import encoder_grid
from foveate.integrations.vllm.connectors import check_processor, served_connector
from foveate.integrations.vllm.plans import NAME, ServedPlan, serving_of
from foveate.integrations.vllm.processing import LargestImage, PlannedProcessor, settings_of
from foveate.integrations.vllm.selection import chosen, encoder_calls
from foveate.integrations.vllm.weight_names import as_published
from foveate.models.connectors.registry import connector_of_config
from foveate.models.llava import FoveateLlavaProcessor

#: Every token that the connector gives by default.
_DEFAULT = ServedPlan(None)


class FoveateLlavaConnectorInfo(LargestImage, LlavaProcessingInfo):
    """vLLM's processing info, which counts the tokens of the connector at its default length."""

    def get_hf_processor(self, **kwargs: object) -> FoveateLlavaProcessor:
        """Return foveate's processor, checked against the model."""
        processor = self.ctx.get_hf_processor(FoveateLlavaProcessor, **kwargs)
        check_processor(self.get_hf_config(), processor)
        return processor

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Return the number of tokens of an image, which has one size for the encoder."""
        served = served_connector(self.get_hf_config())
        assert served is not None
        return served.tokens


class FoveateLlavaConnectorProcessor(PlannedProcessor, LlavaMultiModalProcessor):
    """vLLM's processor with the placeholders of the connector's tokens, fewer under a plan."""


@MULTIMODAL_REGISTRY.register_processor(
    FoveateLlavaConnectorProcessor, info=FoveateLlavaConnectorInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class FoveateLlavaConnector(LlavaForConditionalGeneration):
    """vLLM's encoder and language model of LLaVA with any connector of foveate between them.

    The connector is foveate's own module, whole on every tensor-parallel rank and not quantized.
    """

    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super(LlavaForConditionalGeneration, self).__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.multimodal_config = vllm_config.model_config.multimodal_config
        self.foveate = serving_of(config)
        self._most_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.configure_mm_token_handling(
            vocab_size=config.text_config.vocab_size, mm_token_ids=[config.image_token_index]
        )
        vision, layer = config.vision_config, config.vision_feature_layer
        with self._mark_tower_model(vllm_config, "image"):
            width = vision.hidden_size * (1 if isinstance(layer, int) else len(layer))
            self.multi_modal_projector = connector_of_config(config, width)
            #: Hidden states on an axis of their own, for connectors that choose them; else `layer` is read.
            self.levels = self.multi_modal_projector.feature_layers(vision.num_hidden_layers)
            self.vision_tower = init_vision_tower_for_llava(
                SimpleNamespace(vision_config=vision, vision_feature_layer=self.levels or layer),
                quant_config=vllm_config.quant_config,
                require_post_norm=False,
                prefix=maybe_prefix(prefix, "vision_tower"),
            )
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights that `save_pretrained` of foveate's class writes."""
        return super().load_weights(as_published(self.config, weights))

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the embeddings (k, D) of every image; image embeddings passed by the user are not compressed."""
        plans = kwargs.pop(NAME, None)
        image_input = self._parse_and_validate_image_input(**kwargs)
        if self.foveate is None or plans is None or not isinstance(image_input, LlavaImagePixelInputs):
            return super().embed_multimodal(**kwargs)
        settings = settings_of(self.foveate, plans)
        served = served_connector(self.config)
        assert served is not None
        images = chosen(
            self.foveate,
            settings,
            encoder_calls([served.tokens] * len(settings), self._most_tokens),
            lambda call: self._tokens(image_input["pixel_values"][call], settings[call]),
            self.vision_tower.vision_model.encoder.layers,
            lambda block: block.self_attn.attn,
            self,
            {"pixel_values": image_input["pixel_values"]},
        )
        return tuple(features for features, _ in images)

    def _process_image_input(self, image_input: Any) -> Any:
        if not isinstance(image_input, LlavaImagePixelInputs):
            return super()._process_image_input(image_input)
        pixel_values = image_input["pixel_values"]
        return tuple(self._tokens(pixel_values, [_DEFAULT] * len(pixel_values)))

    def _tokens(self, pixel_values: Tensor, settings: Sequence[ServedPlan]) -> list[Tensor]:
        """Encode images at the lengths of their plans; the connector runs once per length.

        Returns:
            The tokens (n, D) of every image at the default length; those of other lengths stand at their places
            (`ServedPlan.places`) among zeros.
        """
        config, connector = self.config, self.multi_modal_projector
        layer = config.vision_feature_layer
        features = self.vision_tower(
            pixel_values,
            select_layers=list(self.levels or ([layer] if isinstance(layer, int) else layer)),
            feature_select_strategy=config.vision_feature_select_strategy,
        )
        if self.levels:
            features = features.unflatten(-1, (len(self.levels), -1))
        grid = encoder_grid(config.vision_config, *pixel_values.shape[-2:])
        images: dict[int, Tensor] = {}
        for places, members in indices_by_value(setting.places for setting in settings).items():
            if places is None:
                tokens, _ = connector(features[members], grid)
            else:
                given, _ = connector(features[members], grid, len(places))
                at = torch.tensor(places, device=given.device)
                shape = (len(members), connector.output_grid(grid).size, given.shape[-1])
                tokens = given.new_zeros(shape).index_copy(1, at, given)
            images |= dict(zip(members, tokens, strict=True))
        return [images[place] for place in range(len(settings))]
