"""Speech recognition from sound and lips with a language model, at compression rates that are chosen per call."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, WhisperModel
from transformers import initialization as init
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.generic import ModelOutput

from foveate.core.errors import FoveateError
from foveate.core.weights import SAFE, check_weights
from foveate.models.avsr.adapters import Adapter, add_adapters, balance_loss
from foveate.models.avsr.configuration import AVSRConfig
from foveate.models.avsr.lip_encoder import LipEncoder
from foveate.models.avsr.rates import Rates, compress_frames

IGNORED = -100


def _checked_lengths(name: str, lengths: Tensor, clips: int, frames: int) -> Tensor:
    """Lengths `(B,)` of clips of `frames` frames.

    Raises:
        FoveateError: they are not those of so many clips.
    """
    given = torch.as_tensor(lengths)
    fits = given.shape == (clips,) and not given.is_floating_point()
    if not fits or int(given.min()) < 0 or int(given.max()) > frames:
        raise FoveateError(
            f"{name}_lengths must be the frames of each of {clips} clips, at most {frames}, not {given.tolist()}."
        )
    return given


@dataclass
class AVSROutput(ModelOutput):
    """Output of a pass.

    Args:
        loss: Mean cross entropy of the labels, in a pass over all rates their mean; with MoME also the weighted
            load-balancing loss.
        logits: `(B, L, V)` of the whole sequence, padded on the left; None in a pass over all rates.
        labels: `(B, L)` labels of that sequence.
        balance_loss: Unweighted load-balancing loss in training with MoME.
        losses: Cross entropy `(rates,)` in a pass over all rates, in the order of `config.all_rates`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    balance_loss: Tensor | None = None
    losses: Tensor | None = None


class Projector(nn.Module):
    """Two linear layers with a ReLU between them, and a layer norm after them."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, norm: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(input_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, output_size)
        self.norm = nn.LayerNorm(output_size) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, n, input_size)` to `(B, n, output_size)`."""
        return self.norm(self.linear_2(self.linear_1(x).relu()))


class AVSRForConditionalGeneration(PreTrainedModel):
    """Whisper encoder and lip features, compressed in time, in front of a causal language model.

    The sequence is the first token of the text (BOS), `<audio>` tokens `</audio>`, `<video>` tokens `</video>`, and the
    rest of the text: prompt and transcript. Features of every `r` frames are averaged or stacked and mapped by the
    projector of that rate. Adapters in the language model are those of the rates (Llama-MTSK) or shared (Llama-AVSR,
    MoME). In training without `rates` the loss is the mean over all rates, as in Llama-MTSK and MoME; encoders run once
    for all of them.

    Where the authors' code (Llama-AVSR, Omni-AVSR) departs: it crops all sounds of a batch to the longest, so that
    shorter ones are followed by features of silence that the model reads; here the length of each clip counts, and
    padding is masked. It refuses stacked videos whose length is no multiple of the rate; here the incomplete last group
    is dropped, as it does for sound.

    Encoders and language model stay frozen in the papers: `freeze_pretrained`.
    """

    config: AVSRConfig
    config_class = AVSRConfig
    base_model_prefix = "avsr"
    main_input_name = "input_ids"
    input_modalities = ("audio", "video", "text")  # ty: ignore[invalid-assignment]
    _no_split_modules = ["WhisperEncoderLayer", "LlamaDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # A checkpointed layer would run again with the adapters of the last rates.
    supports_gradient_checkpointing = False

    def __init__(self, config: AVSRConfig) -> None:
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = config.text_config.hidden_size
        self.audio_encoder = WhisperEncoder(config.audio_config) if config.reads_audio else None
        self.video_encoder = None if config.video_config is None else LipEncoder(config.video_config)
        sizes = (config.projector_hidden_size or width, width, config.projector_norm)

        def projectors(rates: Any, input_size: int) -> nn.ModuleDict:
            stacked = config.compression == "stack"
            return nn.ModuleDict(
                {str(rate): Projector(input_size * (rate if stacked else 1), *sizes) for rate in rates}
            )

        self.audio_projector = self.video_projector = None
        if config.reads_audio:
            self.audio_projector = projectors(config.audio_rates, config.audio_config.d_model)
        if config.video_hidden_size is not None:
            self.video_projector = projectors(config.video_rates, config.video_hidden_size)
        # A decoder without `layers` has no layer that adapters know, which is refused there.
        decoder = self.language_model.get_decoder()
        self._adapters = add_adapters(config, getattr(decoder, "layers", [decoder]))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in `transformers`, then adapters, which the language model initializes as other layers of its own.

        Loaded weights stay as they are.
        """
        super().initialize_weights()
        for adapter in self._adapters:
            for module in adapter.modules():
                if isinstance(module, Adapter):
                    module.reset_parameters()

    @classmethod
    def from_parts(
        cls,
        text: str | PathLike[str],
        audio: str | PathLike[str] | None = None,
        video: str | PathLike[str] | None = None,
        **options: Any,
    ) -> AVSRForConditionalGeneration:
        """Join pretrained models; projectors and adapters are new.

        Args:
            text: Folder or Hub id of a causal language model.
            audio: Of Whisper.
            video: Of a lip encoder; None: video features are given, if `video_hidden_size` is.
            **options: Fields of `AVSRConfig`.
        """
        parts: dict[str, Any] = {"text_config": cls._load(AutoModelForCausalLM, text)}
        if audio is not None:
            parts["audio_config"] = cls._load(WhisperModel, audio)
        if video is not None:
            parts["video_config"] = cls._load(LipEncoder, video)
        model = cls(AVSRConfig(**{name: part.config for name, part in parts.items()}, **options))
        adapted = model.language_model.load_state_dict(parts["text_config"].state_dict(), strict=False)
        if wrong := [key for key in adapted.missing_keys if ".adapter." not in key] + adapted.unexpected_keys:
            raise FoveateError(f"the weights of {text} do not fit their configuration: {wrong[0]}.")
        if model.audio_encoder is not None:
            model.audio_encoder.load_state_dict(parts["audio_config"].encoder.state_dict())
        if model.video_encoder is not None:
            model.video_encoder.load_state_dict(parts["video_config"].state_dict())
        return model

    @staticmethod
    def _load(kind: Any, location: str | PathLike[str]) -> Any:
        check_weights(str(location))
        return kind.from_pretrained(location, **SAFE)

    def freeze_pretrained(self) -> None:
        """Train projectors and adapters only, and keep encoders and language model as they are."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("projector." in name or ".adapter." in name)

    def get_input_embeddings(self) -> nn.Module:
        """Embeddings of the text."""
        return self.language_model.get_input_embeddings()

    # Features and tokens

    def get_audio_features(self, input_features: Tensor) -> Tensor:
        """Encode log-mel spectrograms `(B, bins, frames)` to `(B, T, d)`, 50 frames a second.

        Raises:
            FoveateError: the model reads no sound, or spectrograms have another shape.
        """
        if self.audio_encoder is None:
            raise FoveateError("this model reads no sound: its configuration has no audio_config.")
        config = self.config.audio_config
        shape = (config.num_mel_bins, 2 * config.max_source_positions)
        if input_features.ndim != 3 or tuple(input_features.shape[1:]) != shape:
            raise FoveateError(
                f"input_features must be (B, {shape[0]}, {shape[1]}), the padded spectrograms of "
                f"WhisperFeatureExtractor, not {tuple(input_features.shape)}."
            )
        return self.audio_encoder(input_features.to(self.dtype)).last_hidden_state

    def get_video_features(self, video_values: Tensor) -> Tensor:
        """Encode grey clips `(B, T, H, W)`, all frames of which are read, to `(B, T, d)`.

        Raises:
            FoveateError: the model has no video encoder.
        """
        if self.video_encoder is None:
            raise FoveateError("this model has no video encoder: give video_features, or no video.")
        return self.video_encoder(video_values).last_hidden_state

    def _features(self, inputs: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Features `(B, T, d)` and lengths `(B,)` of both modalities."""
        features: dict[str, tuple[Tensor, Tensor]] = {}
        for name, raw, encode in (
            ("audio", "input_features", self.get_audio_features),
            ("video", "video_values", self.get_video_features),
        ):
            given, values = inputs.pop(f"{name}_features", None), inputs.pop(raw, None)
            lengths = inputs.pop(f"{name}_lengths", None)
            count = (given is not None) + (values is not None)
            if not getattr(self.config, f"reads_{name}"):
                if count:
                    raise FoveateError(f"this model reads no {name}.")
                continue
            if count != 1:
                raise FoveateError(f"the model reads {name}: give either {raw} or {name}_features.")
            if name == "video" and given is None and lengths is not None:
                given = self._encode_clips(values, lengths)
            states = encode(values) if given is None else given
            if lengths is None:
                lengths = torch.full((len(states),), states.shape[1])
            features[name] = (states, _checked_lengths(name, lengths, *states.shape[:2]).to(states.device))
        return features

    def _encode_clips(self, video_values: Tensor, lengths: Tensor) -> Tensor:
        """States `(B, T, d)` of clips of several lengths, zero behind each: a clip alone has the same.

        The encoder attends to all frames of a clip, and would attend to padding too. (Whisper was trained to read the
        silence behind a sound.)
        """
        if video_values.ndim != 4:
            return self.get_video_features(video_values)  # says what it reads
        lengths = _checked_lengths("video", lengths, *video_values.shape[:2])
        states = None
        for length in sorted({*lengths.tolist()} - {0}):
            rows = (lengths == length).nonzero().flatten().to(video_values.device)
            some = self.get_video_features(video_values[rows, :length])
            if states is None:
                states = some.new_zeros(*video_values.shape[:2], some.shape[-1])
            states = states.index_put((rows,), F.pad(some, (0, 0, 0, video_values.shape[1] - length)))
        return self.get_video_features(video_values) if states is None else states

    def _tokens(self, name: str, features: tuple[Tensor, Tensor], rate: int) -> tuple[Tensor, Tensor]:
        """Embeddings `(B, n, D)` of a modality with its two markers, and their mask `(B, n)`."""
        states, lengths = features
        counts = lengths // rate
        if int(counts.min()) < 1:
            raise FoveateError(f"a clip of {int(lengths.min())} frames has no {name} token at a rate of {rate}.")
        projector = getattr(self, f"{name}_projector")[str(rate)]
        tokens = projector(compress_frames(states.to(self.dtype), rate, self.config.compression))
        markers = torch.tensor(
            [getattr(self.config, f"{name}_start_token_id"), getattr(self.config, f"{name}_end_token_id")],
            device=tokens.device,
        )
        start, end = self.get_input_embeddings()(markers).to(tokens.dtype).expand(len(tokens), -1, -1).split(1, dim=1)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        one = mask.new_ones(len(mask), 1)
        return torch.cat([start, tokens, end], dim=1), torch.cat([one, mask, one], dim=1)

    def _sequence(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        features: dict[str, tuple[Tensor, Tensor]],
        rates: Rates,
        labels: Tensor | None,
    ) -> dict[str, Tensor]:
        """Embeddings, mask and labels of the whole sequence, padded on the left."""
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise FoveateError(f"input_ids must be (B, L) with a first token, not {tuple(input_ids.shape)}.")
        for name, value in (("attention_mask", attention_mask), ("labels", labels)):
            if value is not None and value.shape != input_ids.shape:
                raise FoveateError(f"{name} {tuple(value.shape)} must fit input_ids {tuple(input_ids.shape)}.")
        for name, (states, _) in features.items():
            if len(states) != len(input_ids):
                raise FoveateError(f"there are {len(input_ids)} texts and {name} of {len(states)} clips.")
        text = self.get_input_embeddings()(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.bool()
        if not bool(mask[:, 0].all()):
            raise FoveateError("input_ids must be padded on the right: sound and video follow their first token.")
        media = [
            self._tokens(name, features[name], rate)
            for name, rate in (("audio", rates.audio), ("video", rates.video))
            if rate is not None
        ]
        parts = [(text[:, :1], mask[:, :1]), *media, (text[:, 1:], mask[:, 1:])]
        embeds = torch.cat([part for part, _ in parts], dim=1)
        whole = torch.cat([part for _, part in parts], dim=1)
        # Padding within the sequence moves to its left; the order of the rest stays.
        order = whole.int().argsort(dim=1, stable=True)[:, int((~whole).sum(dim=1).min()) :]
        arguments = {
            "inputs_embeds": embeds.gather(1, order[:, :, None].expand(-1, -1, embeds.shape[2])),
            "attention_mask": whole.gather(1, order).long(),
        }
        if labels is not None:
            ignored = labels.new_full((len(labels), embeds.shape[1] - labels.shape[1]), IGNORED)
            joined = torch.cat([labels[:, :1], ignored, labels[:, 1:]], dim=1).masked_fill(~whole, IGNORED)
            arguments["labels"] = joined.gather(1, order)
        return arguments

    def _use(self, rates: Rates) -> None:
        for adapter in self._adapters:
            adapter.active, adapter.recording = rates.key, self.training

    # What users call

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        rates: Any = None,
        *,
        input_features: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        audio_features: Tensor | None = None,
        video_values: Tensor | None = None,
        video_lengths: Tensor | None = None,
        video_features: Tensor | None = None,
        **kwargs: Any,
    ) -> AVSROutput:
        """One pass over sound, video and text.

        Args:
            input_ids: `(B, L)` BOS, prompt and transcript, padded on the right.
            attention_mask: `(B, L)`.
            labels: `(B, L)` as `input_ids`, -100 where no loss is computed: BOS, prompt, padding.
            rates: See `Rates.of`; None: the first of `config.all_rates`, in training with labels all of them.
            input_features: `(B, bins, frames)` log-mel spectrograms.
            audio_lengths: `(B,)` frames of the audio encoder that hold sound, see `audio_frames`; None: all.
            audio_features: `(B, T, d)` states of the audio encoder in place of spectrograms.
            video_values: `(B, T, H, W)` for the video encoder.
            video_lengths: `(B,)` frames of each clip; None: all.
            video_features: `(B, T, d)` features of the lips in place of clips.
            **kwargs: Of the language model.

        Raises:
            FoveateError: an input is missing, of another shape, too short, or the rates are unknown.
        """
        features = self._features(
            {
                "input_features": input_features,
                "audio_lengths": audio_lengths,
                "audio_features": audio_features,
                "video_values": video_values,
                "video_lengths": video_lengths,
                "video_features": video_features,
            }
        )
        if rates is None and self.training and labels is not None and len(self.config.all_rates) > 1:
            outputs = [
                self._forward(input_ids, attention_mask, labels, of_rates, features, kwargs)
                for of_rates in self.config.all_rates
            ]
            balance = None
            if outputs[0].balance_loss is not None:
                balance = torch.stack([output.balance_loss for output in outputs]).mean()
            cross_entropy = torch.stack([output.losses[0] for output in outputs])
            loss = torch.stack([output.loss for output in outputs]).mean()
            return AVSROutput(loss=loss, balance_loss=balance, losses=cross_entropy)
        return self._forward(input_ids, attention_mask, labels, self.config.rates(rates), features, kwargs)

    def _forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        rates: Rates,
        features: dict[str, tuple[Tensor, Tensor]],
        kwargs: dict[str, Any],
    ) -> Any:
        self._use(rates)
        arguments = self._sequence(input_ids, attention_mask, features, rates, labels)
        positions = (arguments["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        output = self.language_model(**arguments, position_ids=positions, **kwargs)
        balance = None
        loss = output.loss
        if self.training and self.config.adapter == "mome":
            balance = balance_loss([adapter.take_routed() for adapter in self._adapters], arguments["attention_mask"])
            loss = None if loss is None else loss + self.config.balance_weight * balance
        return AVSROutput(
            loss=loss,
            logits=output.logits,
            labels=arguments.get("labels"),
            balance_loss=balance,
            losses=None if output.loss is None else output.loss[None],
        )

    @torch.no_grad()
    def generate(self, input_ids: Tensor, rates: Any = None, **kwargs: Any) -> Any:
        """Transcribe: as `generate` of the language model, with the prompt `(B, L)` and the inputs of `forward`.

        Args:
            input_ids: BOS and prompt, padded on the right.
            rates: See `forward`.
            **kwargs: Inputs of `forward`, and options of `generate`.

        Returns:
            New tokens `(B, n)`, or what the options ask for.

        Raises:
            FoveateError: see `forward`.
        """
        names = ("input_features", "audio_lengths", "audio_features", "video_values", "video_lengths", "video_features")
        features = self._features({name: kwargs.pop(name, None) for name in names})
        rates = self.config.rates(rates)
        self._use(rates)
        arguments = self._sequence(input_ids, kwargs.pop("attention_mask", None), features, rates, None)
        return self.language_model.generate(**arguments, **kwargs)
