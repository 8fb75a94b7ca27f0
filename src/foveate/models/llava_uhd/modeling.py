"""LLaVA-UHD: a vision tower with token compression inside, a connector and a causal language model.

Follows `LlavaForConditionalGeneration` of `transformers`, so that tools for its vision-language models
(`generate`, pipelines, Trainer, PEFT) work here. Unlike there, images are packed:
`pixel_values` holds the patches of all images of the batch one after another, and `grid_hws` says how many
belong to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.packed import connect_packed
from foveate.models.connectors.prompts import GeneratesFromPrompts, ReadsPrompts, check_readable
from foveate.models.connectors.registry import connector_of_config
from foveate.models.encoders import Encoder, EncoderConfig
from foveate.models.llava.lengths import NestedEncoder, nested_part
from foveate.models.llava_uhd import vision_remember
from foveate.models.llava_uhd.checkpoint import UNUSED_KEYS
from foveate.models.llava_uhd.configuration import LlavaUHDConfig
from foveate.models.llava_uhd.packed_encoder import PackedEncoder
from foveate.models.llava_uhd.voco import read_through_voco
from foveate.models.vit_uhd.vit_uhd import ViTUHDModel


@dataclass
class LlavaUHDImageFeatures(BaseModelOutputWithPooling):
    """What the vision tower and the connector make of the images of a batch.

    Attributes:
        last_hidden_state: `(L', D)`, packed tokens of the vision tower after its last stage.
        pooler_output: for each image `(rows * columns, d)`, its tokens as the language model reads them,
            row-major.
        grid_hws: `(n, 2)`, rows and columns of the tokens of each image, after the last stage and the connector.
        hidden_states: those of the vision tower, where they were asked for.
        deepstack_features: where Vision Remember needs them, one list with the features `(rows * columns, K, D)` of
            every image's tokens' regions. `generate` repeats what has this name for beams.
    """

    pooler_output: Any = None  # tuple[Tensor, ...], or a list of them where beams were expanded
    grid_hws: Tensor | None = None
    deepstack_features: Any = None


@dataclass
class LlavaUHDModelOutputWithPast(BaseModelOutputWithPast):
    """Output of the language model, and `image_hidden_states (L', d)`, the embeddings of all images."""

    image_hidden_states: Tensor | None = None


@dataclass
class LlavaUHDCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of `LlavaUHDForConditionalGeneration`.

    Attributes:
        loss: mean cross entropy of the labels that are not -100, where labels were given.
        logits: `(batch, positions kept, vocabulary)`.
        cache: the KV cache (`past_key_values` before transformers 5.24).
        hidden_states: those of the language model, where they were asked for.
        attentions: those of the language model, where they were asked for.
        image_hidden_states: `(L', d)`, the packed embeddings of all images.
    """

    image_hidden_states: Tensor | None = None


class LlavaUHDPreTrainedModel(PreTrainedModel):
    """Loading, saving and capabilities shared by the classes below."""

    config: LlavaUHDConfig
    config_class = LlavaUHDConfig
    base_model_prefix = "model"
    input_modalities: ClassVar[list[str]] = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = [compat.CACHE]
    _keys_to_ignore_on_load_unexpected = UNUSED_KEYS
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, vision_remember.VisionRemember):
            module.reset_parameters()  # children are initialised before their parents, so this has the last word
        if isinstance(module, Connector):
            module.reset_parameters()


class LlavaUHDModel(ReadsPrompts, LlavaUHDPreTrainedModel):
    """Vision tower, connector and language model, without the output layer."""

    def __init__(self, config: LlavaUHDConfig) -> None:
        super().__init__(config)
        encoder = isinstance(config.vision_config, EncoderConfig)
        self.vision_tower = (PackedEncoder if encoder else ViTUHDModel._from_config)(config.vision_config)
        self.multi_modal_projector = connector_of_config(config, config.vision_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        if config.vision_remember_layers:
            self.vision_remember = vision_remember.build(config)
            vision_remember.insert(self.language_model, self.vision_remember)
        self.post_init()

    @property
    def own_compression(self) -> str | None:
        """What this model does with visual tokens by itself, so that no plan can be attached to it; None: nothing."""
        if self.config.num_voco_tokens:
            return f"reads images through {self.config.num_voco_tokens} VoCo tokens each"
        if self.config.vision_remember_layers:
            return "has Vision Remember, which needs every visual token in its layers"
        return None

    @property
    def nested_part(self) -> Connector | NestedEncoder:
        """What a plan chooses the length of; see `foveate.models.llava.lengths`."""
        return nested_part(self.multi_modal_projector, self.config.vision_config)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of text tokens."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of text tokens."""
        self.language_model.set_input_embeddings(value)

    def image_arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """See `ReadsPrompts.image_arguments`."""
        return {name: call.get(name) for name in ("pixel_values", "grid_hws")}

    def tokens_of_images(self, call: Mapping[str, Any]) -> list[int]:
        """See `ReadsPrompts.tokens_of_images`."""
        grids = (self.config.encoder_grid(*grid) for grid in call["grid_hws"].tolist())
        return [self.multi_modal_projector.output_grid(grid).size for grid in grids]

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        grid_hws: Tensor,
        budget: int | Sequence[int] | None = None,
        text: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | LlavaUHDImageFeatures:
        """Encode images into embeddings of the language model.

        Args:
            pixel_values: `(L, C, p, p)`, patches of all images, packed, row-major; with an encoder of
                `foveate.models.encoders` squares whose side image sides are multiples of.
            grid_hws: `(n, 2)`, rows and columns of them for each image.
            budget: tokens of every image, or of each, for nested connectors and encoders; None: their default.
            text: `(n, T, d)`, hidden states of each image's prompt, for connectors that read text.
            **kwargs: options of the vision tower, such as `output_hidden_states`.

        Raises:
            FoveateError: if the grids do not account for the patches, or a stage or the connector cannot divide them.
        """
        if grid_hws is None:
            raise FoveateError("pixel_values came without grid_hws, the rows and columns of each image")
        wanted = kwargs.get("output_hidden_states", self.config.vision_config.output_hidden_states)
        layers = self.multi_modal_projector.feature_layers(self.config.vision_config.num_hidden_layers)
        if self.config.vision_remember_layers or layers:
            kwargs["output_hidden_states"] = True
        if budget is not None and isinstance(part := self.nested_part, NestedEncoder):
            budgets = [budget] * len(grid_hws) if isinstance(budget, int) else budget
            kwargs["lengths"], budget = [part.encoder_grid(count) for count in budgets], None
        encoded = self.vision_tower(pixel_values=pixel_values, grid_hws=grid_hws, return_dict=True, **kwargs)
        features = encoded.last_hidden_state
        if layers:
            features = hidden_states_of_tokens(encoded, layers, self.config.vision_config)
        embeddings, grids = connect_packed(self.multi_modal_projector, features, encoded.grid_hws, budget, text)
        memory = None
        if self.config.vision_remember_layers:
            levels = vision_remember.levels_of(encoded, self.config.vision_config.merger_layer_index)
            memory = [list(torch.cat(levels, dim=1).split(encoded.grid_hws.prod(dim=-1).tolist()))]
        return LlavaUHDImageFeatures(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=tuple(embeddings),
            grid_hws=grids,
            hidden_states=encoded.hidden_states if wanted else None,
            deepstack_features=memory,
        )

    def is_placeholder(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Mask `(batch, length)` of the placeholders.

        Without `input_ids`, a placeholder is an embedding equal to that of `config.image_token_id`.
        """
        return self._is_token(self.config.image_token_id, input_ids, inputs_embeds)

    def _is_token(self, number: Any, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is not None and (inputs_embeds is None or input_ids.numel()):
            return input_ids.eq(number)
        if inputs_embeds is None:
            raise FoveateError("give input_ids or inputs_embeds")
        token = torch.tensor(number, device=inputs_embeds.device)
        return inputs_embeds.eq(self.get_input_embeddings()(token)).all(-1)

    def get_placeholder_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        """Mask `(batch, length, 1)` of the positions that image tokens fill.

        Raises:
            FoveateError: if the number of placeholders is not that of the image tokens `(L', d)`.
        """
        mask = self.is_placeholder(input_ids, inputs_embeds)
        # Counting waits for the device, which a compiled graph cannot do.
        if not torch.compiler.is_compiling() and (found := int(mask.sum())) != len(image_features):
            raise FoveateError(
                f"the prompts have {found} image placeholders (token {self.config.image_token_id}) and the "
                f"images {len(image_features)} tokens: let the processor write one placeholder for each token"
            )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    @compat.takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        grid_hws: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, LlavaUHDImageFeatures] | None = None,
        answer_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | LlavaUHDModelOutputWithPast:
        """Run the language model on text whose placeholders are filled with image tokens.

        Args:
            input_ids: `(batch, length)`, with one placeholder for each image token.
            pixel_values: `(L, C, p, p)`, patches of all images, in the order of their placeholders.
            grid_hws: `(n, 2)`, rows and columns of patches of each image.
            attention_mask: `(batch, length)`, 0 for padding.
            position_ids: `(batch, length)`; consecutive where not given.
            cache: KV cache of the positions before; `past_key_values` names it too.
            inputs_embeds: `(batch, length, d)`, in place of `input_ids`.
            mm_encoder_outputs: `{"image": get_image_features(...)}`, images that are already encoded, in
                place of `pixel_values` and `grid_hws`; `generate` encodes once for all beams with it.
            answer_mask: `(batch, length)`, True for tokens of answers, where the connector reads the prompt.
            **kwargs: options of the language model.

        Raises:
            FoveateError: if inputs contradict each other, or placeholders and image tokens differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise FoveateError("give exactly one of input_ids and inputs_embeds")
        images = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if images is not None:
                raise FoveateError("give images as pixel_values or as mm_encoder_outputs, not both")
            if self.reads_prompts and grid_hws is not None:
                call = {"pixel_values": pixel_values, "grid_hws": grid_hws, "input_ids": input_ids}
                call |= {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "answer_mask": answer_mask}
                past = 0 if cache is None else int(cache.get_seq_length())
                check_readable(self.training, past, {**kwargs, **call, "position_ids": position_ids})
                images = self.encode_with_prompts(call)
            else:
                images = self.get_image_features(pixel_values, grid_hws, return_dict=True)

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        text_embeds = inputs_embeds
        image_features = None
        if images is not None:
            image_features = torch.cat(tuple(images.pooler_output))
            image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)
            if self.config.vision_remember_layers:
                memory = torch.cat(tuple(images.deepstack_features[0])).to(inputs_embeds.device)
                kwargs[vision_remember.ARGUMENT] = (memory, *mask[..., 0].nonzero(as_tuple=True))

        arguments: dict[str, Any] = {
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "return_dict": True,
            **compat.cache_argument(cache),
            **kwargs,
        }
        if count := self.config.num_voco_tokens:
            voco = self._is_token(self.config.voco_token_id, input_ids, text_embeds)
            placeholders = self.is_placeholder(input_ids, text_embeds)
            if images is None:  # a placeholder that the model wrote itself is text
                placeholders = torch.zeros_like(placeholders)
            outputs = read_through_voco(self.language_model, placeholders, voco, count, arguments)
        else:
            outputs = self.language_model(**arguments)
        return LlavaUHDModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **compat.cache_argument(compat.cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )


class LlavaUHDForConditionalGeneration(LlavaUHDPreTrainedModel, GeneratesFromPrompts, GenerationMixin):
    """LLaVA-UHD with its output layer: it answers (`generate`) and trains on answers (`labels`).

    `from_pretrained` reads folders and Hub ids saved by `foveate`, and the authors' layout (see
    `foveate.models.llava_uhd.checkpoint`); `from_parts` joins pretrained parts.
    """

    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LlavaUHDConfig) -> None:
        super().__init__(config)
        self.model = LlavaUHDModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Language models name their embedding differently.
        self._tied_weights_keys = {"lm_head.weight": f"{_name_in(self, self.get_input_embeddings())}.weight"}
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        vision_tower: ViTUHDModel | Encoder,
        language_model: PreTrainedModel,
        image_token_id: int,
        **config_fields: Any,
    ) -> LlavaUHDForConditionalGeneration:
        """Join a vision tower and a causal language model by a new connector: where training starts.

        Args:
            vision_tower: any ViT-UHD, or an encoder of `foveate.models.encoders`.
            language_model: a model of `AutoModelForCausalLM`. Both parts are taken as they are, not copied.
            image_token_id: id of the placeholder, a row of the language model's vocabulary
                (`resize_token_embeddings` adds rows).
            **config_fields: other fields of `LlavaUHDConfig`.

        Raises:
            FoveateError: if the language model's vocabulary lacks `image_token_id`, or its output layer is
                not a linear layer without bias.
        """
        head = language_model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise FoveateError(
                f"{type(language_model).__name__} cannot be the language model: "
                "its output layer must be a linear layer without bias"
            )
        if not 0 <= image_token_id < head.out_features:
            raise FoveateError(
                f"image_token_id {image_token_id} is outside the language model's vocabulary "
                f"(0 to {head.out_features - 1}): resize_token_embeddings first"
            )
        config = LlavaUHDConfig(
            vision_config=vision_tower.config,
            text_config=language_model.config,
            image_token_id=image_token_id,
            **config_fields,
        )
        with torch.device("meta"):  # no memory for weights that are replaced
            joined = cls(config)
        connector = connector_of_config(config, config.vision_config.hidden_size)
        connector = connector.to(head.weight.device, head.weight.dtype)
        for layer in connector.modules():
            joined._init_weights(layer)
        if isinstance(vision_tower, Encoder):
            joined.model.vision_tower.encoder = vision_tower
        else:
            joined.model.vision_tower = vision_tower
        joined.model.multi_modal_projector = connector
        joined.model.language_model = language_model.base_model
        if config.vision_remember_layers:
            joined.model.vision_remember = vision_remember.build(config).to(head.weight.device, head.weight.dtype)
            for layer in joined.model.vision_remember.modules():
                joined._init_weights(layer)
            vision_remember.insert(joined.model.language_model, joined.model.vision_remember)
        joined.lm_head = head
        joined.generation_config = language_model.generation_config
        return joined

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of text tokens."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of text tokens."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def get_image_features(
        self, pixel_values: Tensor, grid_hws: Tensor, **kwargs: Any
    ) -> tuple | LlavaUHDImageFeatures:
        """Encode images, see `LlavaUHDModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, grid_hws, **kwargs)

    @compat.takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        grid_hws: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, LlavaUHDImageFeatures] | None = None,
        **kwargs: Any,
    ) -> tuple | LlavaUHDCausalLMOutputWithPast:
        """Predict the next token at each position.

        Args:
            input_ids: `(batch, length)`, with one placeholder (`config.image_token_id`) for each image token.
            pixel_values: `(L, C, p, p)`, patches of all images of the batch, in the order of their
                placeholders.
            grid_hws: `(n, 2)`, rows and columns of patches of each image.
            attention_mask: `(batch, length)`, 0 for padding.
            position_ids: `(batch, length)`; consecutive where not given.
            cache: KV cache of the positions before; `past_key_values` names it too.
            inputs_embeds: `(batch, length, d)`, in place of `input_ids`.
            labels: `(batch, length)`, the token at each position (not shifted); -100 is left out of the loss.
            logits_to_keep: compute the logits of this many last positions (0: all), or of these positions.
            mm_encoder_outputs: images that are already encoded, see `LlavaUHDModel.forward`.
            **kwargs: options of the language model and the loss (`num_items_in_batch`).

        Raises:
            FoveateError: if inputs contradict each other, or placeholders and image tokens differ in number.
        """
        if labels is not None and self.model.reads_prompts and kwargs.get("answer_mask") is None:
            kwargs["answer_mask"] = labels != -100
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            grid_hws=grid_hws,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = _scaled(self.lm_head(outputs.last_hidden_state[:, kept, :]), self.config.text_config)
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return LlavaUHDCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **compat.cache_argument(compat.cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat each prompt, with its images, for its beams or for the sequences to return.

        Releases of `transformers` that encode images before this step leave no `pixel_values` to repeat.
        """
        pixel_values = model_kwargs.pop("pixel_values", None)
        grid_hws = model_kwargs.pop("grid_hws", None)
        if pixel_values is not None and expand_size > 1:
            mask = self.model.is_placeholder(input_ids, model_kwargs.get("inputs_embeds"))
            tokens = mask.sum(-1).tolist()
            pixel_values, grid_hws = self._repeat_images(pixel_values, grid_hws, tokens, expand_size)
        expand: Any = super()._expand_inputs_for_generation  # typed for a protocol that asks for less
        input_ids, model_kwargs = expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        if pixel_values is not None:
            model_kwargs |= {"pixel_values": pixel_values, "grid_hws": grid_hws}
        return input_ids, model_kwargs

    def _repeat_images(
        self, pixel_values: Tensor, grid_hws: Tensor, tokens: list[int], times: int
    ) -> tuple[Tensor, Tensor]:
        """Repeat the packed images of each prompt: [A B | C] becomes [A B A B | C C] for `times=2`.

        `tokens` is the number of placeholders of each prompt, from which follows which images are its own.
        """
        sizes = self.model.tokens_of_images({"grid_hws": grid_hws})
        patches = pixel_values.split(grid_hws.prod(-1).tolist())
        images = list(zip(patches, grid_hws.split(1), sizes, strict=True))
        repeated: list[tuple[Tensor, Tensor, int]] = []
        for count in tokens:
            own = []
            while count > 0 and images:
                own.append(images.pop(0))
                count -= own[-1][2]
            if count:
                raise FoveateError("the image placeholders of each prompt must be those of whole images, in order")
            repeated += own * times
        if images:
            raise FoveateError(f"{len(images)} images have no placeholders in the prompts")
        return torch.cat([patches for patches, _, _ in repeated]), torch.cat([grid for _, grid, _ in repeated])


def hidden_states_of_tokens(encoded: Any, layers: tuple[int, ...], vision: Any) -> Tensor:
    """Hidden states `(L', K, D)` of the tokens that leave a ViT-UHD, one for each of K layers.

    Of layers before a stage, a token has the mean of the patches that it was merged from.

    Args:
        encoded: Output of the vision tower with its hidden states.
        layers: Indices into `encoded.hidden_states`; negative ones count from the end.
        vision: Configuration of the vision tower.

    Raises:
        FoveateError: There is no such hidden state, or an encoder has another number of tokens in it than in its
            output.
    """
    count = len(encoded.hidden_states)
    levels = []
    for layer in layers:
        if not -count <= layer < count:
            raise FoveateError(
                f"the vision tower has the hidden states 0 to {count - 1}, and the connector reads {layer}."
            )
        features = encoded.hidden_states[layer]
        if isinstance(vision, EncoderConfig):
            if features.shape != encoded.last_hidden_state.shape:
                raise FoveateError(
                    f"the connector reads the {len(encoded.last_hidden_state)} tokens that {vision.model_type} makes "
                    f"of the images, of its own width, and its hidden state {layer} is of shape "
                    f"{tuple(features.shape)}."
                )
            levels.append(features)
            continue
        to_come = sum(block >= layer % count for block in vision.merger_layer_index)
        levels.append(
            vision_remember.regions(features, encoded.grid_hws, 2**to_come).mean(dim=1) if to_come else features
        )
    return torch.stack(levels, dim=1)


def _scaled(logits: Tensor, text_config: PreTrainedConfig) -> Tensor:
    """Scale (Cohere, Granite) or soft-cap (Gemma) logits, as the language model does by itself."""
    if (scale := getattr(text_config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(text_config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _name_in(parent: nn.Module, module: nn.Module) -> str:
    """Dotted name of a module inside another."""
    return next(name for name, candidate in parent.named_modules() if candidate is module)
