"""LLaVA with any connector: `LlavaForConditionalGeneration` of `transformers`, whose projector may merge tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.grouping import indices_by_value
from foveate.core.tokens import Grid, encoder_grid
from foveate.core.weights import SAFE, WHERE
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.prompts import GeneratesFromPrompts, ReadsPrompts, bind, check_readable, takes_tensors
from foveate.models.connectors.registry import connector_named, connector_of_config
from foveate.models.encoders import EncoderConfig
from foveate.models.llava.configuration import FoveateLlavaConfig
from foveate.models.llava.conversion import is_released
from foveate.models.llava.features import tower_features
from foveate.models.llava.lengths import NestedEncoder, nested_part
from foveate.models.llava.prefusion import build_prefusion, fuse, stitched
from foveate.models.llava.released_weights import UNUSED_KEYS, register_released_keys


class FoveateLlavaPreTrainedModel(LlavaPreTrainedModel):
    """Loading, saving and initialization shared by the classes below."""

    config: Any
    config_class = FoveateLlavaConfig
    _keys_to_ignore_on_load_unexpected = UNUSED_KEYS

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a folder or Hub id, of foveate's own layout or of the authors' (`foveate.models.llava.conversion`).

        Raises:
            FoveateError: The checkpoint lacks its vision tower, and the tower cannot be read from where the
                configuration says.
        """
        wanted = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = [name for name in info["missing_keys"] if "vision_tower." in name]
        if missing and model.config.released_vision_tower is not None:
            _load_vision_tower(model)
            info["missing_keys"] -= set(missing)
        where = {name: kwargs[name] for name in WHERE if name in kwargs}
        if model.can_generate() and _learned_rows(model.config) and is_released(pretrained_model_name_or_path, **where):
            # Rows of the output layer that no token of text has.
            model.generation_config.suppress_tokens = _learned_rows(model.config)
        return (model, info) if wanted else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Connector):  # children are initialized before their parents
            module.reset_parameters()


@dataclass
class PrefusionImageFeatures(BaseModelOutputWithPooling):
    """Output of the vision tower with `pooler_output`, the tokens, and `deepstack_features`, what text reads.

    Attributes:
        pooler_output: The tokens `(c, d)` of every image.
        deepstack_features: A list with the features `(P, d)` of every image. `generate` repeats what has this name for
            beams.
    """

    pooler_output: Any = None
    deepstack_features: Any = None


class FoveateLlavaModel(FoveateLlavaPreTrainedModel, ReadsPrompts, LlavaModel):
    """Vision tower, connector and language model, without the output layer."""

    def __init__(self, config: FoveateLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        register_released_keys(config.model_type, config.connector_type, config.vision_config.model_type)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        layer = config.vision_feature_layer
        width = config.vision_config.hidden_size * (1 if isinstance(layer, int) else len(layer))
        self.multi_modal_projector: Connector = connector_of_config(config, width)
        self.language_model = AutoModel.from_config(config.text_config)
        if count := self.multi_modal_projector.prefusion_layers:
            self.prefusion = build_prefusion(config.text_config, count)
        self.post_init()
        blocks = config.vision_config.num_hidden_layers
        layers = self.multi_modal_projector.feature_layers(blocks)
        if wrong := [layer for layer in layers if not -blocks - 1 <= layer <= blocks]:
            raise FoveateError(
                f"the vision tower has the hidden states 0 to {blocks}, and {config.connector_type} reads {wrong[0]}."
            )
        if layers and not isinstance(layer, int):
            raise FoveateError(
                f"the connector {config.connector_type} chooses its own layers: vision_feature_layer must be a number."
            )

    @property
    def own_compression(self) -> str | None:
        """What this model does with text and visual tokens, so that no plan can be attached to it; None: nothing."""
        count = self.multi_modal_projector.prefusion_layers
        return f"fuses text with all patches in {count} layers before the language model" if count else None

    @property
    def nested_part(self) -> Connector | NestedEncoder:
        """What a plan chooses the length of; see `foveate.models.llava.lengths`."""
        return nested_part(self.multi_modal_projector, self.config.vision_config)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        image_grids: Tensor | None = None,
        budget: int | Sequence[int] | None = None,
        text: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode images into embeddings of the language model.

        Args:
            pixel_values: `(n, C, H, W)`, images or views; with pre-fusion also `(n, k k + 1, C, H, W)`, k x k
                sub-images, row-major, and the whole image last.
            vision_feature_layer: Hidden state or states that the connector reads, where it does not choose them itself;
                default: those of the configuration.
            vision_feature_select_strategy: "default" leaves out the first token of the tower, [CLS]; "full" keeps all.
            image_sizes: `(n, 2)` height and width of every view in `pixel_values`, at the top left of its `(H, W)`; the
                tower interpolates its positions, and runs once per size. None: they fill it.
            image_grids: `(images, 2)` rows and columns of crops of every image, of which `pixel_values` holds the whole
                image first and then the crops, row-major; for encoders that exchange information between crops, others
                read each alone. None: every view is an image by itself.
            budget: Tokens of every image, for nested connectors and encoders, also as a list, whose numbers are equal
                for images of one size; None: their default.
            text: `(n, T, d)`, hidden states of each image's prompt, for connectors that read text.
            **kwargs: Options of a CLIP or SigLIP tower; encoders of foveate have theirs from the configuration.

        Returns:
            The output of the vision tower, with `pooler_output`: the tokens `(rows * columns, d)` of every image; with
            pre-fusion a `PrefusionImageFeatures`; for views of `image_sizes` `pooler_output` alone.

        Raises:
            FoveateError: Tokens of the tower are not those of the patches, or the connector cannot map them.
        """
        if image_sizes is not None:
            chosen = (vision_feature_layer, vision_feature_select_strategy)
            kwargs |= {"image_grids": image_grids}
            return self._features_of_views(pixel_values, image_sizes, chosen, budget, text, kwargs)
        connector, vision = self.multi_modal_projector, self.config.vision_config
        parts = pixel_values.shape[1] if pixel_values.ndim == 5 else None
        if parts is not None:
            if not connector.prefusion_layers:
                raise FoveateError(f"sub-images need pre-fusion, which the connector {connector.name} has not here.")
            pixel_values = pixel_values.flatten(0, 1)
        grid = encoder_grid(vision, *pixel_values.shape[-2:])
        if isinstance(budget, Sequence):
            if len(set(budget)) != 1:
                raise FoveateError(f"images of one size have one number of tokens, not {sorted(set(budget))}.")
            budget = budget[0]
        if isinstance(vision, EncoderConfig):
            kwargs = vision.tower_options()
            if budget is not None and isinstance(part := self.nested_part, NestedEncoder):
                grid, budget = part.encoder_grid(budget), None
                kwargs |= vision.length_options(grid)
            if image_grids is not None:
                kwargs |= vision.crop_options([Grid(rows, columns) for rows, columns in image_grids.tolist()])
        features, outputs = tower_features(
            self,
            pixel_values,
            grid,
            connector.feature_layers(vision.num_hidden_layers),
            self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer,
            vision_feature_select_strategy or self.config.vision_feature_select_strategy,
            kwargs,
        )
        patches = features
        if parts is not None:
            features, whole_images, grid = stitched(features.unflatten(0, (-1, parts)), grid)
            patches = torch.cat([features, whole_images], dim=1)
        tokens, _ = connector(features, grid, budget, text)
        outputs.pooler_output = list(tokens)
        if connector.prefusion_layers:
            return PrefusionImageFeatures(
                last_hidden_state=outputs.last_hidden_state,
                pooler_output=outputs.pooler_output,
                hidden_states=outputs.hidden_states,
                deepstack_features=[list(connector.project(patches))],
            )
        return outputs

    def image_arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """See `ReadsPrompts.image_arguments`."""
        names = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy", "image_sizes", "image_grids")
        return {name: call[name] for name in names if call.get(name) is not None}

    def _features_of_views(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        chosen: tuple[int | list[int] | None, str | None],
        budget: int | Sequence[int] | None,
        text: Tensor | None,
        kwargs: dict[str, Any],
    ) -> BaseModelOutputWithPooling:
        """Encode views of several sizes, those of one size together; see `get_image_features`."""
        if self.multi_modal_projector.prefusion_layers:
            raise FoveateError("views of several sizes cannot be fused with text: leave out image_sizes.")
        sizes = _sizes(image_sizes)
        largest = tuple(pixel_values.shape[-2:])
        if len(sizes) != len(pixel_values) or any(h > largest[0] or w > largest[1] for h, w in sizes):
            raise FoveateError(
                f"image_sizes must be height and width of {len(pixel_values)} views of at most {largest[0]} x "
                f"{largest[1]} pixels, not {sizes}."
            )
        if kwargs["image_grids"] is not None and len(set(sizes)) > 1:
            raise FoveateError(f"crops of image_grids have one size, and image_sizes has {len(set(sizes))}.")
        tokens: dict[int, Tensor] = {}
        for (height, width), members in indices_by_value(sizes).items():
            outputs = FoveateLlavaModel.get_image_features(  # not that of `self`, which a plan replaces
                self,
                pixel_values[members, :, :height, :width],
                *chosen,
                budget=[budget[place] for place in members] if isinstance(budget, Sequence) else budget,
                text=None if text is None else text[members],
                **kwargs | {"interpolate_pos_encoding": True, "return_dict": True},
            )
            tokens |= dict(zip(members, outputs.pooler_output, strict=True))
        in_order: Any = [tokens[place] for place in range(len(sizes))]
        return BaseModelOutputWithPooling(pooler_output=in_order)

    def tokens_of_images(self, call: Mapping[str, Any]) -> list[int]:
        """See `ReadsPrompts.tokens_of_images`."""
        pixel_values, sizes = call["pixel_values"], call.get("image_sizes")
        views = [tuple(pixel_values.shape[-2:])] * len(pixel_values) if sizes is None else _sizes(sizes)
        grids = (encoder_grid(self.config.vision_config, *view) for view in views)
        return [self.multi_modal_projector.output_grid(grid).size for grid in grids]

    @takes_tensors(LlavaModel.forward, "answer_mask", "image_grids")
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `LlavaModel.forward`; `answer_mask (B, L)` is True for tokens of answers, where prompts are read."""
        if not self.reads_prompts:
            kwargs.pop("answer_mask", None)
            if kwargs.get("image_grids") is None:
                return super().forward(*args, **kwargs)
            return super().forward(**self._with_read_crops(super().forward, args, kwargs))
        call = self.with_encoded_images(super().forward, args, kwargs)
        images = (call.get("mm_encoder_outputs") or {}).get("image")
        if images is not None and self.multi_modal_projector.prefusion_layers:
            call = self._with_fused_text(call, images, kwargs.get("answer_mask"))
        return super().forward(**call)

    def _with_read_crops(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
        """Arguments of `LlavaModel.forward` with encoded images; before transformers 5.24 it drops `image_grids`."""
        call = bind(function, args, kwargs)
        if call.get("pixel_values") is None or call.get("mm_encoder_outputs") is not None:
            return call
        named = inspect.signature(function).parameters
        options = {name: value for name, value in call.items() if name not in named} | {"return_dict": True}
        return self.with_image_features(call, self.get_image_features(**options | self.image_arguments(call)))

    def _with_fused_text(self, call: dict[str, Any], images: Any, answer_mask: Tensor | None) -> dict[str, Any]:
        """Arguments of `LlavaModel.forward` with embeddings of the tokens and of the fused text."""
        cache = compat.cache_in(call)
        check_readable(
            self.training, 0 if cache is None else int(cache.get_seq_length()), call | {"answer_mask": answer_mask}
        )
        ids = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
        if answer_mask is not None and (written := ids.shape[1] - answer_mask.shape[1]) > 0:
            answer_mask = nn.functional.pad(answer_mask, (0, written), value=True)  # by `generate`, without a cache
        prompts = self.prompts(call | {"answer_mask": answer_mask})
        tokens, patches = torch.stack(list(images.pooler_output)), torch.stack(list(images.deepstack_features[0]))
        embeds = fuse(self.prefusion, prompts, patches, tokens)
        return call | {"inputs_embeds": embeds, "input_ids": None, "mm_encoder_outputs": None}


class FoveateLlavaForConditionalGeneration(
    FoveateLlavaPreTrainedModel, GeneratesFromPrompts, LlavaForConditionalGeneration
):
    """LLaVA with any connector and an output layer: it answers (`generate`) and trains on answers (`labels`)."""

    def __init__(self, config: FoveateLlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = FoveateLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @takes_tensors(LlavaForConditionalGeneration.forward, "answer_mask", "image_grids")
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `LlavaForConditionalGeneration.forward`; where prompts are read, nothing that has labels is."""
        return super().forward(*args, **kwargs | self.model.answers_of(super().forward, args, kwargs))


def _sizes(image_sizes: Tensor) -> list[tuple[int, int]]:
    """Height and width of every view of `(n, 2)`."""
    return [(int(height), int(width)) for height, width in image_sizes]


def _learned_rows(config: Any) -> list[int]:
    """Ids of the placeholder and of the learned vectors, where a released model of images gets rows for them."""
    if not isinstance(config, FoveateLlavaConfig):
        return []
    count = len(connector_named(config.connector_type).released_vectors)
    return list(range(config.image_token_id, config.image_token_id + 1 + count)) if count else []


def _load_vision_tower(model: Any) -> None:
    """Load the weights of the vision tower from where a released configuration says.

    Raises:
        FoveateError: They cannot be read.
    """
    core = getattr(model, "model", model)
    tower: Any = type(core.vision_tower)
    location = model.config.released_vision_tower
    vision = model.config.vision_config
    if location.endswith((".pth", ".pt", ".bin")):
        raise FoveateError(
            f"the checkpoint holds no vision tower, and {location!r}, which it names, is a pickle, which can run any "
            f"program: convert it to a folder of {vision.model_type} where you trust it, and name that as "
            "mm_vision_tower in config.json."
        )
    # An encoder may be configured with other stages than its folder says; a CLIP folder may be of both towers.
    config = {"config": vision} if isinstance(vision, EncoderConfig) else {}
    try:
        loaded = tower.from_pretrained(location, dtype=model.dtype, **config, **SAFE)
        core.vision_tower.load_state_dict(loaded.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200].rstrip(".")
        raise FoveateError(
            f"the checkpoint holds no vision tower, and {location!r}, which it names, cannot be read: {reason}."
        ) from error
