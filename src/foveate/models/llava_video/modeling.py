"""LLaVA for clips: a vision tower that reads every frame, a video connector, and a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPTextModel,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
    PreTrainedModel,
    SiglipTextModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast
from transformers.utils import can_return_tuple

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.tokens import encoder_grid
from foveate.models.encoders import EncoderConfig
from foveate.models.llava.features import joint_space, tower_features
from foveate.models.llava.modeling import FoveateLlavaPreTrainedModel
from foveate.models.llava.released_weights import UNUSED_KEYS, register_keys_of
from foveate.models.llava_video.configuration import FoveateLlavaVideoConfig
from foveate.models.llava_video.placeholders import KeptColumns, kept_columns, kept_placeholders
from foveate.models.video_connectors import (
    Instruction,
    VideoConnector,
    build_video_connector,
    video_connector_named,
)
from foveate.models.visual_memory import ARGUMENT, MemoryReader, VisualMemory, insert

#: Inputs of `get_image_features` and `get_video_features`.
IMAGE_INPUTS = ("pixel_values", "image_instruction_ids")
VIDEO_INPUTS = ("pixel_values_videos", "frame_counts", "video_timestamps", "video_instruction_ids")
#: Text encoders that connectors read instructions with, by the `model_type` of their configuration.
TEXT_ENCODERS: dict[str, Any] = {"clip_text_model": CLIPTextModel, "siglip_text_model": SiglipTextModel}
#: Padding of instruction ids.
NO_WORD = -1


class FoveateLlavaVideoPreTrainedModel(FoveateLlavaPreTrainedModel):
    """Loading, saving and initialization shared by the classes below."""

    config: Any
    config_class = FoveateLlavaVideoConfig
    input_modalities = ("image", "video", "text")  # ty: ignore[invalid-assignment]
    _keys_to_ignore_on_load_unexpected = UNUSED_KEYS

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (VideoConnector, MemoryReader)):  # children are initialized before their parents
            module.reset_parameters()


@dataclass
class ClipFeatures(BaseModelOutputWithPooling):
    """Tokens of clips.

    Attributes:
        pooler_output: The tokens `(n, d)` of every clip.
        greatest_counts: The number of placeholders that prompts have for every clip.
        deepstack_features: A list with the memories `(S, d)` of every clip, where decoder layers read them. `generate`
            repeats what has this name for beams.
    """

    pooler_output: Any = None
    greatest_counts: Any = None
    deepstack_features: Any = None


class FoveateLlavaVideoModel(FoveateLlavaVideoPreTrainedModel, LlavaModel):
    """Vision tower, video connector and language model, without the output layer."""

    def __init__(self, config: FoveateLlavaVideoConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        cls = video_connector_named(config.connector_type)
        vision_type = config.vision_config.model_type
        register_keys_of(FoveateLlavaVideoConfig.model_type, cls, vision_type, cls.released_reader_keys)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        layer = config.vision_feature_layer
        width = config.vision_config.hidden_size * (1 if isinstance(layer, int) else len(layer))
        self.multi_modal_projector: VideoConnector = build_video_connector(
            config.connector_type, width, config.text_config.hidden_size, **dict(config.connector_options or {})
        )
        if config.instruction_config is not None:
            encoder_class = TEXT_ENCODERS[config.instruction_config.model_type]
            self.instruction_encoder = encoder_class(config.instruction_config)
        self.language_model = AutoModel.from_config(config.text_config)
        layers = self.multi_modal_projector.decoder_layers(config.text_config.num_hidden_layers)
        if layers:
            readers = {str(layer): self.multi_modal_projector.build_reader(config.text_config) for layer in layers}
            self.memory_readers = nn.ModuleDict(readers)
            insert(self.language_model, self.memory_readers)
        self._share_attention()
        self.post_init()

    def _share_attention(self) -> None:
        """Give models inside of the connector, of which `transformers` knows no configuration, this attention."""
        for part in (self.multi_modal_projector, getattr(self, "instruction_encoder", None)):
            for module in [] if part is None else part.modules():
                if isinstance(module, PreTrainedModel):
                    module.set_attn_implementation(self.config._attn_implementation)

    @property
    def own_compression(self) -> str | None:
        """What this model does with visual tokens, so that no plan can be attached to it; None: nothing."""
        connector = self.multi_modal_projector
        if hasattr(self, "memory_readers"):
            return f"lets decoder layers read clips whose tokens are not in the sequence ({connector.name})"
        return None if connector.static_count else f"gives every clip its own number of tokens ({connector.name})"

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        image_instruction_ids: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        budget: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode images as clips of equal frames.

        Args:
            pixel_values: `(n, C, H, W)`.
            image_instruction_ids: `(n, M)`, what every image is asked about, as `video_instruction_ids`.
            vision_feature_layer: As for clips.
            vision_feature_select_strategy: As for clips.
            budget: As for clips.
            **kwargs: As for clips.

        Returns:
            `ClipFeatures`.
        """
        frames = self.multi_modal_projector.image_frames
        return FoveateLlavaVideoModel.get_video_features(
            self,
            pixel_values.unsqueeze(1).expand(-1, frames, -1, -1, -1),
            video_instruction_ids=image_instruction_ids,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            budget=budget,
            **kwargs | {"return_dict": True},
        )

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        frame_counts: Tensor | None = None,
        video_timestamps: Tensor | None = None,
        video_instruction_ids: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        budget: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode clips into embeddings of the language model.

        Args:
            pixel_values_videos: `(n, T, C, H, W)`; frames from the frame count of a clip on are padding.
            frame_counts: `(n,)`, frames of every clip; None: T.
            video_timestamps: `(n, T)` in seconds; None: unknown.
            video_instruction_ids: `(n, M)`, ids of the words that every clip is asked about, of the tokenizer of the
                connector's text encoder; -1 after their end.
            vision_feature_layer: Hidden state or states that the connector reads; default: those of the configuration.
            vision_feature_select_strategy: "default" leaves out the first token of the tower, [CLS]; "full" keeps all.
            budget: Tokens of every clip, for nested connectors, also as a list; None: their default.
            **kwargs: Options of a CLIP or SigLIP tower; encoders of foveate have theirs from the configuration.

        Returns:
            `ClipFeatures`.

        Raises:
            FoveateError: An input has another shape, or tower or connector cannot read the clips.
        """
        if pixel_values_videos.ndim != 5:
            raise FoveateError(
                f"pixel_values_videos must be (clips, frames, channels, height, width), not a tensor of shape "
                f"{tuple(pixel_values_videos.shape)}."
            )
        clips, longest = pixel_values_videos.shape[:2]
        lengths = _lengths(frame_counts, clips, longest)
        times = _timestamps(video_timestamps, clips, longest)
        frames = torch.cat([clip[:length] for clip, length in zip(pixel_values_videos, lengths, strict=True)])
        vision = self.config.vision_config
        grid = encoder_grid(vision, *frames.shape[-2:])
        if isinstance(vision, EncoderConfig):
            known: dict[str, Any] = {"frame_counts": lengths}
            if times is not None:
                known["timestamps"] = torch.cat([time[:length] for time, length in zip(times, lengths, strict=True)])
            read = {name: value for name, value in known.items() if name in vision.clip_options}
            kwargs = vision.tower_options() | read
        features, outputs = tower_features(
            self,
            frames,
            grid,
            (),
            self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer,
            vision_feature_select_strategy or self.config.vision_feature_select_strategy,
            kwargs,
        )
        connector = self.multi_modal_projector
        if connector.reads_joint_space:
            features = torch.stack([features, joint_space(self.vision_tower, outputs.last_hidden_state)], dim=2)
        texts = self._instructions(video_instruction_ids, clips)
        budgets = list(budget) if isinstance(budget, Sequence) else [budget] * clips
        encoded = [
            connector.encode(
                clip, grid, None if times is None else times[number, : len(clip)], texts[number], budgets[number]
            )
            for number, clip in enumerate(features.split(lengths))
        ]
        tokens, memories = [clip for clip, _ in encoded], [memory for _, memory in encoded if memory is not None]
        greatest = [
            connector.output_shape(length, grid, own).size for length, own in zip(lengths, budgets, strict=True)
        ]
        return ClipFeatures(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=tokens,
            greatest_counts=greatest,
            deepstack_features=[memories] if memories else None,
        )

    def _instructions(self, ids: Tensor | None, clips: int) -> list[Instruction | None]:
        """What every clip is asked about.

        Raises:
            FoveateError: The connector reads it and it is missing, is of other clips, or has more words than the text
                encoder reads, or none.
        """
        connector = self.multi_modal_projector
        if not connector.reads_text:
            return [None] * clips
        if ids is None or ids.ndim != 2 or len(ids) != clips:
            shape = "missing" if ids is None else f"of shape {tuple(ids.shape)}"
            raise FoveateError(
                f"the connector {connector.name} reads what {clips} clips or images are asked about, and their "
                f"instruction ids are {shape}."
            )
        words = [row[row != NO_WORD] for row in ids]
        encoder = getattr(self, "instruction_encoder", None)
        if encoder is None:
            return [Instruction(row) for row in words]
        most = encoder.config.max_position_embeddings
        for number, row in enumerate(words):
            if not 1 <= len(row) <= most:
                raise FoveateError(
                    f"the text encoder reads instructions of 1 to {most} words, and that of clip or image {number} has "
                    f"{len(row)}: give the processor instructions, and its instruction_length {most} where they are "
                    "longer."
                )
        return [Instruction(row, *word_states(encoder, row)) for row in words]

    def placeholder_masks(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> dict[str, Tensor]:
        """`(B, L)` bool for "image" and "video": places of their placeholders."""
        ids = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        if input_ids is not None and input_ids.numel():
            return {name: input_ids == token for name, token in ids.items()}
        if inputs_embeds is None:
            raise FoveateError("give input_ids or inputs_embeds.")
        embedding = self.get_input_embeddings()
        device = inputs_embeds.device
        return {
            name: (inputs_embeds == embedding(torch.tensor(token, device=device))).all(-1)
            for name, token in ids.items()
        }

    def encode(self, call: Mapping[str, Any]) -> dict[str, ClipFeatures]:
        """Encode the images and clips among the arguments of a call."""
        shared = ("vision_feature_layer", "vision_feature_select_strategy", "budget")
        encoded = {}
        for name, inputs, function in (
            ("image", IMAGE_INPUTS, self.get_image_features),
            ("video", VIDEO_INPUTS, self.get_video_features),
        ):
            if call.get(inputs[0]) is not None:
                given = {key: call[key] for key in (*inputs, *shared) if call.get(key) is not None}
                encoded[name] = function(**given, return_dict=True)
        return encoded

    def stays(self, masks: Mapping[str, Tensor], encoded: Mapping[str, Any]) -> Tensor | None:
        """`(B, L)` bool, False for placeholders that stay empty; None: there are none.

        Raises:
            FoveateError: The prompts have another number of placeholders.
        """
        result = None
        for name, output in encoded.items():
            counts = [len(tokens) for tokens in output.pooler_output]
            greatest = getattr(output, "greatest_counts", None) or counts
            kept = kept_placeholders(masks[name], greatest, counts, name)
            result = kept if result is None else result & kept
        return None if result is None or bool(result.all()) else result

    def _memory(
        self,
        encoded: Mapping[str, Any],
        masks: Mapping[str, Tensor],
        embeds: Tensor,
        attention_mask: Tensor | None,
        cache: Any,
    ) -> VisualMemory | None:
        """What decoder layers read in this call, of its own clips or of those whose tokens the cache holds.

        Raises:
            FoveateError: Clips follow others that are in the cache, or their tokens are not all in one row.
        """
        if not hasattr(self, "memory_readers"):
            return None
        batch, length = embeds.shape[:2]
        # A cache that was emptied by `reset` keeps its attributes.
        before = getattr(cache, ARGUMENT, None) if cache is not None and int(cache.get_seq_length()) else None
        if not encoded:
            return None if before is None else before.for_text(batch, length)
        if before is not None:
            raise FoveateError(
                "decoder layers of this model read the clips that are in the cache, and more follow: give the whole "
                "conversation without a cache."
            )
        rows: list[list[Tensor]] = [[] for _ in range(batch)]
        visual = torch.zeros(batch, length, dtype=torch.bool, device=embeds.device)
        for name, output in encoded.items():
            counts = [len(tokens) for tokens in output.pooler_output]
            of_clips = _rows_of_clips(masks[name], counts)
            for row, memory in zip(of_clips, output.deepstack_features[0], strict=True):
                rows[row].append(memory.to(embeds))
            visual = visual | masks[name].to(embeds.device)
        text = ~visual
        if attention_mask is not None and attention_mask.ndim == 2:
            text = text & attention_mask[:, -length:].bool()
        return VisualMemory.of_rows(rows, text, visual, embeds.new_zeros(0, embeds.shape[-1]))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        frame_counts: Tensor | None = None,
        video_timestamps: Tensor | None = None,
        image_instruction_ids: Tensor | None = None,
        video_instruction_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        budget: int | Sequence[int] | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Read prompts with images and clips; see `get_video_features` for their inputs.

        Where a clip has fewer tokens than the prompt has placeholders, the others are removed before the language
        model, which runs on the shorter sequence; hidden states are zero at their columns.

        Raises:
            FoveateError: The same thing is given twice; the placeholders are not those of the inputs; or placeholders
                are removed and the call has a cache, whose columns would not be those of later masks: `generate`
                removes them first.
        """
        call = {
            "pixel_values": pixel_values,
            "pixel_values_videos": pixel_values_videos,
            "frame_counts": frame_counts,
            "video_timestamps": video_timestamps,
            "image_instruction_ids": image_instruction_ids,
            "video_instruction_ids": video_instruction_ids,
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "budget": budget,
        }
        if inputs_embeds is not None and input_ids is not None and input_ids.numel():
            raise FoveateError("give exactly one of input_ids and inputs_embeds.")
        encoded = {name: output for name, output in (mm_encoder_outputs or {}).items() if output is not None}
        for name, inputs in (("image", IMAGE_INPUTS), ("video", VIDEO_INPUTS)):
            if name in encoded and call[inputs[0]] is not None:
                raise FoveateError(f"give {name} inputs as {inputs[0]} or as mm_encoder_outputs, not both.")
        encoded |= self.encode(call)
        cache = past_key_values if cache is None else cache
        kept: KeptColumns | None = None
        length, masks = 0, {}
        if encoded:
            masks = self.placeholder_masks(input_ids, inputs_embeds)
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            stays = self.stays(masks, encoded)
            for name, output in encoded.items():
                places = masks[name] if stays is None else masks[name] & stays
                tokens = torch.cat(list(output.pooler_output)).to(inputs_embeds)
                inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), tokens)
            if stays is not None:
                _check_removable(cache, use_cache, position_ids)
                kept, length = kept_columns(stays, attention_mask), inputs_embeds.shape[1]
                inputs_embeds, attention_mask = kept.gather(inputs_embeds), kept.mask
                position_ids, use_cache = (kept.mask.cumsum(-1) - 1).clamp(min=0), False
        elif inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        memory = self._memory(encoded, masks, inputs_embeds, attention_mask, cache)
        if memory is not None and position_ids is None:
            # Readers may read by the position itself, and not by the distance alone: padding must not count.
            position_ids = _positions_after_padding(attention_mask, inputs_embeds.shape[1], cache)
        if memory is not None and cache is None and use_cache is not False:
            arguments = {"use_cache": use_cache} | compat.cache_argument(None)
            cache = compat.cache_for_call(self.language_model, arguments)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **compat.cache_argument(cache),
            **kwargs | {"return_dict": True} | ({} if memory is None else {ARGUMENT: memory}),
        )
        if cache is not None and (memory is not None or hasattr(cache, ARGUMENT)):
            setattr(cache, ARGUMENT, memory)
        hidden: Any = outputs.last_hidden_state
        states: Any = outputs.hidden_states
        if kept is not None:
            hidden = kept.scatter(hidden, length)
            states = None if states is None else tuple(kept.scatter(state, length) for state in states)
        return LlavaModelOutputWithPast(
            last_hidden_state=hidden,  # ty: ignore[invalid-argument-type]
            hidden_states=states,  # ty: ignore[invalid-argument-type]
            attentions=outputs.attentions,
            **compat.cache_argument(compat.cache_of(outputs)),
        )


class FoveateLlavaVideoForConditionalGeneration(FoveateLlavaVideoPreTrainedModel, LlavaForConditionalGeneration):
    """LLaVA for clips with an output layer: it answers (`generate`) and trains on answers (`labels`)."""

    model: Any

    def __init__(self, config: FoveateLlavaVideoConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = FoveateLlavaVideoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """See `FoveateLlavaVideoModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """See `FoveateLlavaVideoModel.get_video_features`."""
        return self.model.get_video_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        frame_counts: Tensor | None = None,
        video_timestamps: Tensor | None = None,
        image_instruction_ids: Tensor | None = None,
        video_instruction_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict the next token, and with `labels` the loss; see `FoveateLlavaVideoModel.forward`."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            frame_counts=frame_counts,
            video_timestamps=video_timestamps,
            image_instruction_ids=image_instruction_ids,
            video_instruction_ids=video_instruction_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            mm_encoder_outputs=mm_encoder_outputs,
            **compat.cache_argument(past_key_values if cache is None else cache),
            **kwargs | {"return_dict": True},
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **compat.cache_argument(compat.cache_of(outputs)),
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate text, see `GenerationMixin.generate` of `transformers`.

        Where clips have fewer tokens than placeholders, these are removed from the prompt first; the sequences that
        are returned begin with the prompt as it was given, with which `max_length` and `min_length` count.

        Raises:
            FoveateError: Placeholders are not those of the inputs, or would be removed after those of a cache or from
                `inputs_embeds`.
        """
        has_pixels = any(kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        ids = kwargs.get("input_ids") if inputs is None else inputs
        if self.model.multi_modal_projector.static_count or not has_pixels:
            return super().generate(inputs, *args, **kwargs)
        if ids is None:
            raise FoveateError("clips of this model have their own numbers of tokens: generate from input_ids.")
        if compat.cache_in(kwargs) is not None:
            raise FoveateError("clips of this model have their own numbers of tokens: generate without a cache.")
        encoded = self.model.encode(kwargs)
        names = (*IMAGE_INPUTS, *VIDEO_INPUTS, "input_ids", "budget")
        rest = {name: value for name, value in kwargs.items() if name not in names}
        rest["mm_encoder_outputs"] = encoded
        stays = self.model.stays(self.model.placeholder_masks(ids, None), encoded)
        if stays is None:
            return super().generate(ids, *args, **rest)
        mask = rest.get("attention_mask")
        padding = self.generation_config.pad_token_id
        if mask is None and padding is not None and bool((ids == padding).any()):
            raise FoveateError("the ids have padding, and placeholders are removed: give their attention_mask too.")
        kept = kept_columns(stays, mask)
        short = kept.gather(ids)
        if padding is not None:
            short = torch.where(kept.mask.bool(), short, padding)
        settings = kwargs.get("generation_config") or next(iter(args), None) or self.generation_config
        limits = _limits_without(ids.shape[1] - short.shape[1], kwargs, settings)
        output = super().generate(short, *args, **rest | limits | {"attention_mask": kept.mask})
        sequences = output if isinstance(output, Tensor) else output.sequences
        prompts = ids.repeat_interleave(len(sequences) // len(ids), dim=0)
        sequences = torch.cat([prompts, sequences[:, short.shape[1] :]], dim=1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


def word_states(encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States `(M, W)` of words `(M,)`, mapped as the pooled output is, and the pooled output `(W,)`."""
    output = encoder(input_ids=ids[None], return_dict=True)
    head: Any = getattr(getattr(encoder, "text_model", encoder), "head", nn.Identity())
    return head(output.last_hidden_state[0]), output.pooler_output[0]


def _positions_after_padding(attention_mask: Tensor | None, length: int, cache: Any) -> Tensor | None:
    """Positions `(B, L)` of the last columns of a mask, counted from the first token of every row; None: no mask."""
    past = 0 if cache is None else int(cache.get_seq_length())
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.shape[1] != past + length:
        return None
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past:]


def _limits_without(removed: int, options: Mapping[str, Any], settings: Any) -> dict[str, int]:
    """Limits of the length of prompt and answer together, for a prompt that lacks so many columns.

    Args:
        removed: Columns.
        options: Of `generate`.
        settings: Its generation configuration, whose limits count where the options have none.
    """
    limits = {}
    for name, of_answers in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        limit, own = (options.get(one) or getattr(settings, one, None) for one in (name, of_answers))
        if limit and not own:
            limits[name] = max(limit - removed, 0)
    return limits


def _rows_of_clips(placeholders: Tensor, counts: Sequence[int]) -> list[int]:
    """The row of every clip, for clips of so many tokens in the order of their placeholders `(B, L)`.

    Raises:
        FoveateError: A clip begins in one row and ends in another.
    """
    ends = torch.tensor(counts).cumsum(0)
    row_ends = placeholders.sum(-1).cpu().cumsum(0)
    first, last = torch.searchsorted(row_ends, ends - torch.tensor(counts) + 1), torch.searchsorted(row_ends, ends)
    if not torch.equal(first, last):
        raise FoveateError("the placeholders of a clip are in two rows.")
    return last.tolist()


def _lengths(frame_counts: Tensor | None, clips: int, longest: int) -> list[int]:
    """Frames of every clip.

    Raises:
        FoveateError: They are not those of these clips.
    """
    if frame_counts is None:
        return [longest] * clips
    lengths = [int(count) for count in frame_counts]
    if len(lengths) != clips or not all(1 <= length <= longest for length in lengths):
        raise FoveateError(
            f"frame_counts must have a number from 1 to {longest} for each of {clips} clips, not {lengths}."
        )
    return lengths


def _timestamps(timestamps: Tensor | None, clips: int, longest: int) -> Tensor | None:
    """Timestamps `(n, T)` of every clip.

    Raises:
        FoveateError: They are not those of these clips.
    """
    if timestamps is not None and timestamps.shape != (clips, longest):
        raise FoveateError(
            f"video_timestamps must be of shape {(clips, longest)}, one for every frame, not {tuple(timestamps.shape)}."
        )
    return timestamps


def _check_removable(cache: Any, use_cache: bool | None, position_ids: Tensor | None) -> None:
    """Refuse calls in which placeholders cannot be removed.

    Raises:
        FoveateError: The call has a cache or positions.
    """
    if use_cache or (cache is not None and int(cache.get_seq_length())):
        raise FoveateError(
            "clips have fewer tokens than placeholders here, so that the columns of a cache are not those of the "
            "prompt: call the model with use_cache=False, or generate()."
        )
    if position_ids is not None:
        raise FoveateError(
            "clips have fewer tokens than placeholders here, and positions are counted after these are removed: leave "
            "out position_ids."
        )
