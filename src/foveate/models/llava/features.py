"""Features of the vision tower of a LLaVA, as its connector reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders import EncoderConfig


def tower_features(
    model: Any,
    pixel_values: Tensor,
    grid: Grid,
    levels: Sequence[int],
    layer: int | Sequence[int],
    strategy: str,
    options: Mapping[str, Any],
) -> tuple[Tensor, Any]:
    """Encode images of one size.

    Args:
        model: The model without its output layer, with `vision_tower` and `config`.
        pixel_values: `(B, C, H, W)`.
        grid: Rows and columns of the tokens that the tower gives.
        levels: Hidden states that the connector chooses itself; empty: it reads `layer`.
        layer: Hidden state, or hidden states, that are concatenated.
        strategy: "default" leaves out the first token of the tower, [CLS]; "full" keeps all.
        options: Of the tower.

    Returns:
        The features `(B, N, D)`, with an axis for `levels` before the last one; and the output of the tower.

    Raises:
        FoveateError: The tower has no such hidden state, or its tokens are not those of the patches.
    """
    vision = model.config.vision_config
    given = {name: value for name, value in options.items() if value is not None}
    outputs = model.vision_tower(pixel_values, **given | {"output_hidden_states": True, "return_dict": True})
    first = 1 if strategy == "default" else 0
    chosen = levels or ([layer] if isinstance(layer, int) else layer)
    count = len(outputs.hidden_states)
    if wrong := [number for number in chosen if not -count <= number < count]:
        raise FoveateError(f"the vision tower has the hidden states 0 to {count - 1}, and {wrong[0]} was chosen.")
    states = [outputs.hidden_states[number][:, first:] for number in chosen]
    if wrong := [state.shape[1] for state in states if state.shape[1] != grid.size]:
        if isinstance(vision, EncoderConfig):
            raise FoveateError(
                f"the connector reads the {grid.size} tokens that {vision.model_type} makes of an image, and one "
                f"of its hidden states {', '.join(map(str, chosen))} has {wrong[0]}."
            )
        raise FoveateError(
            f"the connector reads the {grid.size} patches of an image, and with vision_feature_select_strategy "
            f"{strategy!r} there are {wrong[0]} tokens: 'default' leaves out [CLS] of CLIP, 'full' keeps "
            "every patch of SigLIP."
        )
    return torch.stack(states, dim=2) if levels else torch.cat(states, dim=-1), outputs


def joint_space(tower: Any, states: Tensor) -> Tensor:
    """Patches in the joint space of image and text: the last states `(B, N, D)` of a SigLIP, mapped as its head does.

    The head of SigLIP pools by attention, and then adds an MLP of the normalized result; every patch is mapped so.

    Raises:
        FoveateError: The tower is no SigLIP with a head.
    """
    head = getattr(getattr(tower, "vision_model", tower), "head", None)
    if head is None or not hasattr(head, "layernorm"):
        raise FoveateError(
            "the joint space of image and text is that of a SigLIP with its head, which this vision tower is not."
        )
    return states + head.mlp(head.layernorm(states))
