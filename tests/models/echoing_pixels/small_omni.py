"""A small Qwen2.5-Omni thinker, and prompts of sound and video, as formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

AUDIO, IMAGE, VIDEO, AUDIO_START, AUDIO_END, VISION_START, VISION_END, PAD = 50, 51, 52, 53, 54, 55, 56, 57
WIDTH, HEADS = 32, 2
TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
}
#: Sections of Sync-RoPE for heads of 16.
SECTIONS = [2, 2, 2, 2]
AUDIO_CONFIG: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "output_dim": WIDTH,
    "max_source_positions": 100,
    "n_window": 4,
}
VISION_CONFIG: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [0],
    "window_size": 16,
}
TOKENS: dict[str, Any] = {
    "audio_token_id": AUDIO,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_start_token_id": AUDIO_START,
    "audio_end_token_id": AUDIO_END,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
}
MEL, GRID = 24, (2, 4, 4)


def wave(number: int, shape: tuple[int, ...], size: float) -> Tensor:
    """Values that look random and are the same on every machine."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (size * torch.sin(places * (1.7 + 0.13 * number) + places**2 * 1e-3)).float().view(shape)


def prompt(turn: int = 0) -> dict[str, Any]:
    """One prompt with a sound of 24 mel frames (6 tokens) and a clip of 2 x 4 x 4 patches (8 tokens)."""
    audio, video = 6, GRID[0] * GRID[1] * GRID[2] // 4
    ids = [1, AUDIO_START, *[AUDIO] * audio, AUDIO_END, 2, VISION_START, *[VIDEO] * video, VISION_END, 3, 4 + turn, 9]
    patches = GRID[0] * GRID[1] * GRID[2]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "input_features": wave(turn, (1, 8, MEL), 1.0),
        "feature_attention_mask": torch.ones(1, MEL, dtype=torch.int64),
        "pixel_values_videos": wave(turn + 5, (patches, 3 * 2 * 4 * 4), 1.0),
        "video_grid_thw": torch.tensor([GRID]),
        "video_second_per_grid": torch.tensor([1.0]),
    }


def fill(names: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights for names and shapes, in the order of the names."""
    filled = {}
    for number, (name, shape) in enumerate(sorted(names.items())):
        norm = len(shape) == 1 and name.endswith("weight")
        filled[name] = wave(number % 50, shape, 0.1 if len(shape) > 1 else 0.05) + (1.0 if norm else 0.0)
    return filled


def released_name(name: str) -> str:
    """The authors' name of a weight."""
    text = "model.language_model."
    for ours, theirs in (
        (f"{text}refiner.", "thinker.model.bidir_encoder.layers."),
        (f"{text}selector.norm.", "thinker.model.compressor.ln."),
        (f"{text}selector.linear_1.", "thinker.model.compressor.score_head.0."),
        (f"{text}selector.linear_2.", "thinker.model.compressor.score_head.2."),
        (text, "thinker.model."),
        ("model.audio_tower.", "thinker.audio_tower."),
        ("model.visual.", "thinker.visual."),
        ("lm_head.", "thinker.lm_head."),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise AssertionError(name)
