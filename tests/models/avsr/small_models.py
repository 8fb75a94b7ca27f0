"""Small models of every kind, and inputs of two clips of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.models.avsr import AVSRConfig, AVSRForConditionalGeneration

TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 6,
}
WHISPER: dict[str, Any] = {
    "d_model": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "max_source_positions": 40,
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
LIPS: dict[str, Any] = {
    "image_size": 16,
    "conv_channels": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama-avsr": {"audio_rates": [3], "video_rates": [3], "compression": "stack", "projector_norm": False},
    "mtsk-ms": {"lora_scheme": "shared"},
    "mtsk-ss": {"lora_scheme": "per_rate"},
    "mtsk-mss": {"lora_scheme": "shared_and_per_rate"},
    "mome": {"adapter": "mome"},
    "mome-attention": {"adapter": "mome", "mome_placement": "attention"},
    "mome-mlp": {"adapter": "mome", "mome_placement": "mlp", "normalize_gates": True},
}


def build(seed: int = 0, trained: bool = True, **options: Any) -> AVSRForConditionalGeneration:
    """A model with random weights, also of its adapters if `trained`."""
    small = {"lora_reduction": 4, "expert_size": 3, "num_experts": 5, "num_experts_per_token": 2}
    fields = {"text_config": TEXT, "audio_config": WHISPER, "video_config": LIPS, **small, **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AVSRForConditionalGeneration(AVSRConfig(**fields)).eval()
        if trained:
            for name, value in model.named_parameters():
                if ".adapter." in name:
                    torch.nn.init.normal_(value, std=0.3)
    return model


def inputs() -> dict[str, Tensor]:
    """Two clips, the second shorter in sound and video."""
    chance = torch.Generator().manual_seed(1)
    return {
        "input_features": torch.randn(2, 8, 80, generator=chance),
        "audio_lengths": torch.tensor([40, 33]),
        "video_values": torch.randn(2, 20, 16, 16, generator=chance),
        "video_lengths": torch.tensor([20, 16]),
    }


def text() -> tuple[Tensor, Tensor, Tensor]:
    """BOS, prompt and words of two transcripts, their mask and their labels."""
    ids = torch.tensor([[5, 10, 11, 12, 6], [5, 10, 13, 6, 0]])
    mask = (ids != 0).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return ids, mask, labels
