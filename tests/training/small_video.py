"""Small models for clips with a video connector, as recipes write them."""

from __future__ import annotations

import copy
from typing import Any

from tests.models.llava_video.small_llava_video import words_config
from tests.models.video_connectors.small_options import JOINT, SMALL
from tests.training.small_training import TEXT

SIDE = 84
VISION = {
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 14,
}
TRAIN = {"connector": 1e-3, "language_model": 1e-3}


def new_fields(name: str) -> dict[str, Any]:
    """Fields of a small model with a connector."""
    vision: dict[str, Any] = dict(VISION)
    fields: dict[str, Any] = {"architecture": "llava-video", "text": copy.deepcopy(TEXT)}
    if name in JOINT:
        vision["type"] = "siglip_vision_model"
        kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        words = words_config().to_dict()
        fields["instruction"] = {
            "model_type": "siglip_text_model",
            "projection_size": 48,
            "max_position_embeddings": 64,
        }
        fields["instruction"] |= {key: words[key] for key in kept}
    elif name == "temporal_pvc":
        vision |= {"type": "temporal_pvc", "temporal_layers": 1}
    return fields | {"vision": vision, "connector": {"type": name, **SMALL.get(name, {})}}
