"""Weights and inputs of a small Llama-AVSR in the authors' layout, as formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The authors' code has this width of video features built in.
WIDTH, AUDIO, VIDEO, HIDDEN, VOCABULARY, HALF = 64, 24, 1024, 32, 40, 60
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
WHISPER: dict[str, Any] = {
    "d_model": AUDIO,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "max_source_positions": HALF,
    "num_mel_bins": 8,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "vocab_size": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
REDUCTION, ALPHA = 16, 8
#: Ids: markers of sound and video, BOS, EOS, prompt, and the words of two utterances.
MARKERS = {"audio_start": 30, "audio_end": 31, "video_start": 32, "video_end": 33}
BOS, EOS, PROMPT = 34, 35, [3, 9, 12]
WORDS = [[5, 7, 11, 20], [6, 21, 2, 19]]
#: 55 frames of Whisper's encoder, and 30 of the video encoder.
SAMPLES, AUDIO_FRAMES, VIDEO_FRAMES = 17_600, 55, 30
#: Cases: modality, compression, rates of sound and video, layer norm; lists are Matryoshka.
CASES: dict[str, dict[str, Any]] = {
    "audio": {"audio_rates": [3], "video_rates": [], "compression": "stack", "norm": False},
    "video": {"audio_rates": [], "video_rates": [2], "compression": "average", "norm": True},
    "audiovisual": {"audio_rates": [4], "video_rates": [3], "compression": "stack", "norm": True},
    "matryoshka": {"audio_rates": [4, 16], "video_rates": [2, 5], "compression": "average", "norm": True},
}


def wave(number: int, shape: tuple[int, ...], size: float) -> Tensor:
    """Values that look random and are the same on every machine."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (size * torch.sin(places * (1.7 + 0.13 * number) + places**2 * 1e-3)).float().view(shape)


def fill(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the names and shapes of a checkpoint, in the order of the names."""
    filled = {}
    for number, (name, value) in enumerate(sorted(state.items())):
        norm = "norm" in name or (name.endswith("proj.3.weight") or ".3.weight" in name)
        one = 1.0 if norm and name.endswith("weight") else 0.0
        filled[name] = wave(number % 50, tuple(value.shape), 0.1 if value.ndim > 1 else 0.05) + one
    return filled


def shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names."""
    settings, named = CASES[case], {}
    for name, width in (("audio", AUDIO), ("video", VIDEO)):
        rates = settings[f"{name}_rates"]
        for place, rate in enumerate(rates):
            start = f"{name}_proj." + (f"{place}." if len(rates) > 1 else "")
            inputs = width * (rate if settings["compression"] == "stack" else 1)
            named |= _linear(f"{start}0", HIDDEN, inputs) | _linear(f"{start}2", WIDTH, HIDDEN)
            if settings["norm"]:
                named |= {f"{start}3.weight": (WIDTH,), f"{start}3.bias": (WIDTH,)}
    if settings["audio_rates"]:
        named |= _whisper()
    return named | _llama()


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _whisper() -> dict[str, tuple[int, ...]]:
    layer, wide = "audio_encoder.layers.0.", WHISPER["encoder_ffn_dim"]
    named: dict[str, tuple[int, ...]] = {
        "audio_encoder.conv1.weight": (AUDIO, 8, 3),
        "audio_encoder.conv1.bias": (AUDIO,),
        "audio_encoder.conv2.weight": (AUDIO, AUDIO, 3),
        "audio_encoder.conv2.bias": (AUDIO,),
        "audio_encoder.embed_positions.weight": (HALF, AUDIO),
        f"{layer}self_attn.k_proj.weight": (AUDIO, AUDIO),
    }
    for part in ("q_proj", "v_proj", "out_proj"):
        named |= _linear(f"{layer}self_attn.{part}", AUDIO, AUDIO)
    named |= _linear(f"{layer}fc1", wide, AUDIO) | _linear(f"{layer}fc2", AUDIO, wide)
    for norm in (f"{layer}self_attn_layer_norm", f"{layer}final_layer_norm", "audio_encoder.layer_norm"):
        named |= {f"{norm}.weight": (AUDIO,), f"{norm}.bias": (AUDIO,)}
    return named


def _llama() -> dict[str, tuple[int, ...]]:
    rank, values = WIDTH // REDUCTION, WIDTH // 4
    named: dict[str, tuple[int, ...]] = {
        "llm.model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "llm.model.norm.weight": (WIDTH,),
        "llm.lm_head.weight": (VOCABULARY, WIDTH),
    }
    for number in range(TEXT["num_hidden_layers"]):
        start = f"llm.model.layers.{number}."
        named |= {f"{start}{norm}.weight": (WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, outputs in (("q", WIDTH), ("k", values), ("v", values), ("o", WIDTH)):
            named[f"{start}self_attn.{part}_proj.weight"] = (outputs, WIDTH)
        for part in ("gate", "up"):
            named[f"{start}mlp.{part}_proj.weight"] = (TEXT["intermediate_size"], WIDTH)
        named[f"{start}mlp.down_proj.weight"] = (WIDTH, TEXT["intermediate_size"])
        for part, outputs in (("Q", WIDTH), ("V", values)):
            named[f"{start}self_attn.lora_down_{part}.weight"] = (rank, WIDTH)
            named[f"{start}self_attn.lora_up_{part}.weight"] = (outputs, rank)
    return named


def weights(case: str) -> dict[str, Tensor]:
    """Weights of a case under the authors' names."""
    return fill({name: torch.empty(shape) for name, shape in shapes(case).items()})


def inputs(turn: int) -> dict[str, Tensor]:
    """Spectrograms, video features and words of two clips."""
    return {
        "input_features": wave(turn, (2, 8, 2 * HALF), 1.0),
        "video_features": wave(turn + 7, (2, VIDEO_FRAMES, VIDEO), 1.0),
        "words": torch.tensor(WORDS).roll(turn, dims=1),
    }
