"""EchoingPixels: one pool of audio and visual tokens in front of Qwen2.5-Omni's language model."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniDecoderLayer,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerModel,
    Qwen2_5OmniThinkerTextModel,
)

from foveate import compat
from foveate.core import sequence
from foveate.core.errors import FoveateError
from foveate.kv_cache.pruned_cache import PrunedCacheState, Reader, attach_state, physical_length, state_for
from foveate.models.echoing_pixels.configuration import EchoingPixelsConfig, EchoingPixelsTextConfig, check_ratio
from foveate.models.echoing_pixels.selection import kept_columns, pool_counts, select_tokens

_OPTIONS = ("retention_ratio", "answer_mask")
_MEDIA = ("input_features", "pixel_values", "pixel_values_videos", "mm_encoder_outputs")


class TokenSelector(nn.Module):
    """Score of every token: `linear_2(SiLU(linear_1(norm(x))))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.linear_1 = nn.Linear(width, width)
        self.linear_2 = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, L, D)` to `(B, L)`."""
        return self.linear_2(nn.functional.silu(self.linear_1(self.norm(x)))).squeeze(-1)


class EchoingPixelsTextModel(Qwen2_5OmniThinkerTextModel):
    """Qwen2.5-Omni's language model behind refiner, score head and selection.

    Attributes:
        generator: Generator of the Gumbel noise in training; None: torch's own.
        columns: `(B, P)` of the last pass over sound or video: columns of the prompt that were kept, -1 for padding.
    """

    config: Any
    config_class = EchoingPixelsTextConfig

    def __init__(self, config: EchoingPixelsTextConfig) -> None:
        super().__init__(config)
        self.refiner = nn.ModuleList(Qwen2_5OmniDecoderLayer(config, i) for i in range(config.num_refiner_layers))
        for layer in self.refiner:
            attention: Any = layer.get_submodule("self_attn")
            attention.is_causal = False
        self.selector = TokenSelector(config.hidden_size)
        self.generator: torch.Generator | None = None
        self.columns: Tensor | None = None
        self._pool: tuple[Tensor, Tensor | None, float] | None = None
        self.post_init()

    def copy_decoder_to_refiner(self) -> None:
        """Copy the first layers of the decoder to the refiner, as training starts."""
        for place, layer in enumerate(self.refiner):
            layer.load_state_dict(self.layers[place].state_dict())

    @contextmanager
    def pooling(self, pool: Tensor, answers: Tensor | None, ratio: float) -> Generator[None]:
        """Select from a pool `(B, L)` in the next pass.

        The thinker of `transformers` has no argument by which its language model would learn which embeddings are sound
        or video.

        Args:
            pool: True for audio and visual tokens.
            answers: `(B, L)`, True for tokens that the refiner must not read.
            ratio: Share that is kept.
        """
        self._pool = (pool, answers, ratio)
        try:
            yield
        finally:
            self._pool = None

    @compat.takes_cache
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of `transformers`; within `pooling` the sequence is shortened first.

        Raises:
            FoveateError: sound or video follows a cache, or the cache cannot lack tokens.
        """
        self.columns = None
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch, length = inputs_embeds.shape[:2]
        if self._pool is None:
            return self._go_on(attention_mask, position_ids, cache, inputs_embeds, kwargs)
        if cache is not None and int(cache.get_seq_length()):
            raise FoveateError(
                "EchoingPixels reads sound and video in the first pass of a conversation, without a cache."
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device).expand(batch, -1)
        positions = position_ids[-3:] if position_ids.ndim == 3 else position_ids.expand(3, batch, -1)
        given = sequence.key_mask(attention_mask, length)
        mask = torch.ones(batch, length, dtype=torch.int64, device=inputs_embeds.device) if given is None else given
        hidden, columns = self._shorten(inputs_embeds, mask.bool(), positions)
        self.columns = columns
        reader = Reader(weakref.ref(self), "EchoingPixels")
        if cache is not None:
            if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
                raise FoveateError(
                    "EchoingPixels shortens the prompt of a cache that grows (DynamicCache), of no other."
                )
            attach_state(cache, PrunedCacheState.of_full_cache(batch, 0, hidden.device, reader))
        with physical_length(cache):
            output = super().forward(
                attention_mask=sequence.gather_mask(mask, columns),
                position_ids=sequence.gather_positions(positions, columns),
                inputs_embeds=hidden,
                **compat.cache_argument(cache),
                **kwargs,
            )
        if (output_cache := compat.cache_of(output)) is not None:
            state = PrunedCacheState.of_full_cache(batch, 0, hidden.device, reader)
            state.extend(columns, length, length - (columns >= 0).sum(dim=1, keepdim=True), columns < 0)
            attach_state(output_cache, state)
        return output

    def _go_on(
        self,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: Any,
        inputs_embeds: Tensor,
        kwargs: dict[str, Any],
    ) -> Any:
        """A pass without sound and video, also after a prompt that was shortened."""
        arguments = {
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            **compat.cache_argument(cache),
            **kwargs,
        }
        state = state_for(cache, Reader(weakref.ref(self), "EchoingPixels"))
        if state is None:
            return super().forward(attention_mask=attention_mask, **arguments)
        batch, new = inputs_embeds.shape[:2]
        total = state.length + new
        mask = sequence.key_mask(attention_mask, total)
        if mask is None:
            mask = torch.ones(batch, total, dtype=torch.int64, device=inputs_embeds.device)
        if position_ids is None:
            raise FoveateError(
                "EchoingPixels goes on from a shortened prompt with position_ids, as `generate` gives them."
            )
        columns = torch.arange(new, device=mask.device).expand(batch, -1)
        held = torch.cat([state.columns, columns + state.length], dim=1)
        # Three axes: positions of text as a fourth would be read as the borders of packed samples.
        arguments["position_ids"] = position_ids[-3:] if position_ids.ndim == 3 else position_ids
        with physical_length(cache):
            output = super().forward(attention_mask=sequence.gather_mask(mask, held), **arguments)
        none = columns.new_zeros(batch, 1)
        state.extend(columns, new, none, torch.zeros_like(columns, dtype=torch.bool))
        return output

    def _shorten(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """States `(B, P, D)` that the first layer reads, and their columns `(B, P)`."""
        assert self._pool is not None
        pool, answers, ratio = self._pool
        pool = pool & mask
        readable = mask if answers is None else mask & ~answers
        # Rows without sound and video stay as they are.
        readable = readable & pool.any(dim=1, keepdim=True)
        hidden = self._refine(embeds, readable, positions)
        noise = None
        if self.training and self.config.gumbel:
            uniform = torch.rand(pool.shape, generator=self.generator).to(embeds.device).clamp(1e-9, 1 - 1e-7)
            noise = -(-uniform.log()).log()
        kept, weights = select_tokens(
            self.selector(hidden), pool, pool_counts(pool, ratio), self.config.temperature, noise
        )
        if self.training:
            hidden = hidden * torch.where(pool, weights, 1.0).unsqueeze(-1).to(hidden.dtype)
        columns = kept_columns(kept | (mask & ~pool))
        return sequence.gather(hidden, columns), columns

    def _refine(self, embeds: Tensor, readable: Tensor, positions: Tensor) -> Tensor:
        """States after the bidirectional layers; tokens that are not readable keep their embeddings."""
        keys = readable | ~readable.any(dim=1, keepdim=True)  # a row that is not refined needs some key
        attention_mask: Tensor = keys[:, None, None].expand(-1, 1, embeds.shape[1], -1)
        implementation = compat.attention_name(self.config)
        if "flash" in implementation or "flex" in implementation:
            raise FoveateError(
                f"the refiner needs attention with a mask, 'sdpa' or 'eager', and not {implementation!r}."
            )
        if "eager" in implementation:
            least = torch.finfo(embeds.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=embeds.dtype).masked_fill(~attention_mask, least)
        rotary, hidden = self.rotary_emb(embeds, positions), embeds
        for layer in self.refiner:
            hidden = layer(hidden, attention_mask=attention_mask, position_embeddings=rotary, use_cache=False)
        return torch.where(readable[:, :, None], hidden, embeds)


def _with_options(original: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Give a `forward` the arguments of `original`, which `generate` checks, and the options of EchoingPixels."""

    def decorate(forward: Callable[..., Any]) -> Any:
        wrapped: Any = functools.wraps(original, assigned=("__annotations__",))(forward)
        arguments = list(inspect.signature(original).parameters.values())
        keywords = [argument for argument in arguments if argument.kind is argument.VAR_KEYWORD]
        options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _OPTIONS]
        named = [argument for argument in arguments if argument not in keywords]
        wrapped.__signature__ = inspect.Signature([*named, *options, *keywords])
        return wrapped

    return decorate


class EchoingPixelsModel(Qwen2_5OmniThinkerModel):
    """Encoders and language model without the output layer."""

    config: Any
    config_class = EchoingPixelsConfig

    def __init__(self, config: EchoingPixelsConfig) -> None:
        super().__init__(config)
        self.language_model = EchoingPixelsTextModel._from_config(config.text_config)
        self.post_init()

    @_with_options(Qwen2_5OmniThinkerModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of `transformers`, with two more options.

        Args:
            *args: As there.
            retention_ratio: Share of audio and visual tokens that is kept; None: that of the configuration.
            answer_mask: `(B, L)`, True for tokens of answers, which the selection must not read.
            **kwargs: As there.

        Raises:
            FoveateError: sound or video comes without `input_ids`, or the ratio is out of range.
        """
        ratio, answers = kwargs.pop("retention_ratio", None), kwargs.pop("answer_mask", None)
        ratio = self.config.text_config.retention_ratio if ratio is None else check_ratio(ratio)
        call = inspect.signature(Qwen2_5OmniThinkerModel.forward).bind_partial(self, *args, **kwargs).arguments
        if all(call.get(name) is None for name in _MEDIA):
            return super().forward(*args, **kwargs)
        if (ids := call.get("input_ids")) is None:
            raise FoveateError("EchoingPixels finds sound and video by their tokens: give input_ids with them.")
        config = self.config
        names = torch.tensor([config.audio_token_id, config.image_token_id, config.video_token_id], device=ids.device)
        with self.language_model.pooling(torch.isin(ids, names), answers, ratio):
            return super().forward(*args, **kwargs)


class EchoingPixelsForConditionalGeneration(Qwen2_5OmniThinkerForConditionalGeneration):
    """Qwen2.5-Omni's thinker with joint audio-visual token reduction.

        refined = R bidirectional layers over sound, video and prompt (copies of the first layers of the decoder)
        k = max(1, ceil(ratio (n_audio + n_visual)))
        sequence = text and the k audio or visual tokens with the highest scores, in their order

    Refined states of the kept tokens enter the causal decoder with their positions in the whole prompt; gaps stay.
    Sync-RoPE gives time the highest and, again, the lowest rotary frequencies ([T, H, W, T]), so that time stays
    monotone over the gaps. New text goes on from the positions of the whole prompt.

    EchoingPixels: Aliasing-Resistant Joint Token Reduction for Audio-Visual LLMs (Gong et al., ICML 2026, arXiv
    2512.10324). Where the authors' code (MIT) departs: it multiplies kept states by w at inference too, which is 1 but
    for rounding; text-only rows of a mixed batch are refined there and not here; short rows are padded on the right
    there, on the left here; Gumbel noise is drawn at inference too there; environment variables choose variants, and
    "visual tokens only", which drops all sound, is left out.

    Outputs belong to the shortened sequence: `logits (B, P, V)`, and `columns (B, P)` says which tokens these are, -1
    for padding. `labels (B, L)` are those of the whole one; the refiner does not read tokens with labels.
    """

    config: Any
    config_class = EchoingPixelsConfig
    _keys_to_ignore_on_load_unexpected = (r"^talker\.", r"^token2wav\.")  # ty: ignore[invalid-assignment]

    def __init__(self, config: EchoingPixelsConfig) -> None:
        super().__init__(config)
        self.model = EchoingPixelsModel(config)
        self.post_init()

    @_with_options(Qwen2_5OmniThinkerForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See the class, `EchoingPixelsModel.forward` and `transformers`."""
        signature = inspect.signature(Qwen2_5OmniThinkerForConditionalGeneration.forward)
        bound = signature.bind_partial(self, *args, **kwargs)
        call = dict(bound.arguments)
        call.pop("self")
        call |= call.pop("kwargs", {})
        labels = call.pop("labels", None)
        if labels is not None and call.get("answer_mask") is None:
            call["answer_mask"] = labels != -100
        output = super().forward(**call)
        columns = self.model.language_model.columns
        if labels is not None:
            if columns is not None:
                labels = sequence.shorten_labels(labels, columns)
            vocab_size = self.config.get_text_config().vocab_size
            output.loss = self.loss_function(
                logits=output.logits,
                labels=labels,
                vocab_size=vocab_size,
                num_items_in_batch=call.get("num_items_in_batch"),  # of all batches of a step, by the Trainer
            )
        if columns is not None:
            output["columns"] = columns
        return output
