"""LLaVA with a connector that merges 2 x 2 patches, and with nested ones."""

from __future__ import annotations

from typing import Any

import torch

from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration
from foveate.testing.small_model import SIDE, TOKENS, llava
from tests.families.zoo import IMAGE, SPREAD, Rows, conversation, image_seeds, pixels


def small() -> Any:
    """The small LLaVA with patches of half the side, so that the connector leaves as many tokens."""
    fields = llava().config.to_dict()
    fields["vision_config"]["patch_size"] //= 2
    chosen = {"model_type": "foveate_llava", "connector_type": "pixel_unshuffle"}
    model = FoveateLlavaForConditionalGeneration(FoveateLlavaConfig(**fields | chosen))
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_1.weight, std=SPREAD)
    return model


def nested() -> Any:
    """The small LLaVA with a connector that can give 16, 4 or 1 tokens of an image."""
    return with_large_weights("m3")


def mqt() -> Any:
    """The small LLaVA with 16 learned queries, any number of which can be used."""
    return with_large_weights("mqt", num_queries=TOKENS, num_heads=2)


def tokenflex() -> Any:
    """The small LLaVA with a connector that pools to any square number of tokens."""
    return with_large_weights("tokenflex", tokens=TOKENS)


def oryx() -> Any:
    """The small LLaVA with a connector that attends within squares of 1, 4 or 16 patches."""
    return with_large_weights("oryx")


def with_large_weights(name: str, **options: Any) -> Any:
    """The small LLaVA with another connector, whose outputs depend on every input."""
    chosen = {"model_type": "foveate_llava", "connector_type": name, "connector_options": options}
    model = FoveateLlavaForConditionalGeneration(FoveateLlavaConfig(**llava().config.to_dict() | chosen))
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=SPREAD)
    return model


MODELS = {
    "foveate-llava": small,
    "foveate-llava-nested": nested,
    "foveate-llava-mqt": mqt,
    "foveate-llava-tokenflex": tokenflex,
    "foveate-llava-oryx": oryx,
}
FAMILY = dict.fromkeys((name for name in MODELS if name != "foveate-llava"), "foveate-llava")


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every image has 4 x 4 tokens."""
    inputs = conversation(rows, lambda size: [IMAGE] * TOKENS, seed, side)
    images = [pixels(own, 3, SIDE, SIDE) for own, _ in image_seeds(rows, seed)]
    return inputs | ({"pixel_values": torch.stack(images)} if images else {})
