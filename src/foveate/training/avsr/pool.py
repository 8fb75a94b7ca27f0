"""EchoingPixels on features of frozen encoders, small enough to be trained on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from foveate import compat
from foveate.core import sequence
from foveate.models.avsr import AVSRConfig
from foveate.models.avsr.modeling import IGNORED, Projector
from foveate.models.avsr.rates import compress_frames
from foveate.models.echoing_pixels import EchoingPixelsTextConfig, EchoingPixelsTextModel
from foveate.training.avsr.recipe import AUDIO_RATE

#: Tokens around sound and video, as those of the other recognizers.
_MARKERS = (
    AVSRConfig.audio_start_token_id,
    AVSRConfig.audio_end_token_id,
    AVSRConfig.video_start_token_id,
    AVSRConfig.video_end_token_id,
)


class PooledRecognizer(PreTrainedModel):
    """Speech recognizer with the language model of EchoingPixels: one pool of sound and lips.

    The sequence is the first token of the text (BOS), `<video>` tokens `</video>`, `<audio>` tokens `</audio>`, and the
    rest of the text. Tokens of the same moment have the same position in time, as in Qwen2.5-Omni.
    """

    config: EchoingPixelsTextConfig
    config_class = EchoingPixelsTextConfig
    base_model_prefix = "recognizer"

    def __init__(self, config: EchoingPixelsTextConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.audio_projector = Projector(width, 2 * width, width, norm=True)
        self.video_projector = Projector(width, 2 * width, width, norm=True)
        self.language_model = EchoingPixelsTextModel(config)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def _sequence(self, ids: Tensor, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings `(B, L, D)`, positions `(3, B, L)` and pool `(B, L)` of the whole sequence."""
        sound, sight = self.audio_projector(compress_frames(audio, AUDIO_RATE, "average")), self.video_projector(video)
        audio_start, audio_end, video_start, video_end = self.language_model.embed_tokens(
            torch.tensor(_MARKERS, device=ids.device)
        ).expand(len(ids), -1, -1).split(1, dim=1)  # fmt: skip
        text = self.language_model.embed_tokens(ids)
        parts = [text[:, :1], video_start, sight, video_end, audio_start, sound, audio_end, text[:, 1:]]
        # Both modalities begin at position 2; what follows them goes on behind the longer one.
        first, behind = 2, 2 + max(sound.shape[1], sight.shape[1])
        seconds = torch.arange(first, behind, device=ids.device)
        place = torch.full_like(seconds, first)  # one token a frame: no height, no width
        rest = torch.arange(behind + 1, behind + ids.shape[1] + 1, device=ids.device)
        single = seconds.new_tensor
        positions = torch.cat(
            [
                single([[0, 1]]).expand(3, -1),
                torch.stack([seconds, place, place])[:, : sight.shape[1]],
                single([[behind, 1]]).expand(3, -1),
                seconds.expand(3, -1)[:, : sound.shape[1]],
                rest.expand(3, -1),
            ],
            dim=1,
        )
        in_pool = torch.cat(
            [torch.full(part.shape[:2], part is sound or part is sight, device=ids.device) for part in parts], dim=1
        )
        return torch.cat(parts, dim=1), positions[:, None].expand(-1, len(ids), -1), in_pool

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        *,
        audio_features: Tensor,
        video_features: Tensor,
        retention_ratio: float,
    ) -> Tensor:
        """Cross entropy of the labels.

        Args:
            input_ids: `(B, L)` BOS, prompt and transcript, padded on the right.
            attention_mask: `(B, L)`.
            labels: `(B, L)`, -100 where no loss is computed.
            audio_features: `(B, T, D)`, 50 a second.
            video_features: `(B, T, D)`, 25 a second.
            retention_ratio: Share of the pool that is kept.
        """
        embeds, positions, pool = self._sequence(input_ids, audio_features, video_features)
        before = embeds.shape[1] - input_ids.shape[1]
        mask, labels = F.pad(attention_mask, (before, 0), value=1), F.pad(labels, (before, 0), value=IGNORED)
        with self.language_model.pooling(pool, labels != IGNORED, retention_ratio):
            hidden = self.language_model(
                attention_mask=mask, position_ids=positions, inputs_embeds=embeds, use_cache=False
            ).last_hidden_state
        assert self.language_model.columns is not None
        labels = sequence.shorten_labels(labels, self.language_model.columns)
        return F.cross_entropy(self.lm_head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        retention_ratio: float,
        *,
        random: bool = False,
        max_new_tokens: int,
        audio_features: Tensor,
        video_features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Transcribe greedily.

        Args:
            input_ids: `(B, L)` BOS and prompt, without padding.
            retention_ratio: Share of the pool that is kept.
            random: Keep as many tokens of the pool at random, the same ones in every call.
            max_new_tokens: Tokens to write.
            audio_features: See `forward`.
            video_features: See `forward`.

        Returns:
            New tokens `(B, max_new_tokens)`, padding behind the end of the text, and the share of sound `(B,)` in what
            was kept of the pool.
        """
        embeds, positions, pool = self._sequence(input_ids, audio_features, video_features)
        model, cache = self.language_model, DynamicCache(config=self.config)
        hooks = [model.selector.register_forward_hook(_at_random)] if random else []
        try:
            with model.pooling(pool, None, retention_ratio):
                hidden = model(
                    position_ids=positions, inputs_embeds=embeds, use_cache=True, **compat.cache_argument(cache)
                ).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        sound = pool & (torch.arange(pool.shape[1], device=pool.device) > 2 + video_features.shape[1])
        columns = model.columns
        assert columns is not None
        kept, kept_sound = (sequence.gather_mask(part, columns).sum(dim=1) for part in (pool, sound))
        tokens = input_ids[:, :0]
        ended = torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
        for step in range(1, max_new_tokens + 1):
            token = self.lm_head(hidden[:, -1:]).argmax(dim=-1).masked_fill(ended, self.config.pad_token_id)
            tokens = torch.cat([tokens, token], dim=1)
            ended = ended | (token == self.config.eos_token_id)
            if step < max_new_tokens:
                place = positions[:, :, -1:] + step
                hidden = model(input_ids=token, position_ids=place, **compat.cache_argument(cache)).last_hidden_state
        return tokens, kept_sound / kept


def _at_random(module: nn.Module, args: Any, scores: Tensor) -> Tensor:
    return torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)).to(scores)
