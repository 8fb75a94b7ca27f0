"""Weights of Llama-AVSR and Omni-AVSR in the authors' layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foveate.core.errors import FoveateError

_ADAPTER = re.compile(r"(.*\.self_attn)\.lora_(down|up)_([QV])\.weight")
_PROJECTOR = re.compile(r"(audio|video)_proj\.(?:(\d+)\.)?([023])\.(weight|bias)")
_LAYERS = {"0": "linear_1", "2": "linear_2", "3": "norm"}


def convert_released(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Rename the weights of a checkpoint of the authors.

    They have one LoRA for all rates, and one projector per rate. Weights of AV-HuBERT are left out: its features are
    inputs of the model (`video_features`).

    Args:
        state: Weights by the authors' names.
        config: `AVSRConfig` of the model, with its rates in the authors' order.

    Returns:
        Weights for `load_state_dict`.

    Raises:
        FoveateError: A name is unknown, such as those of LoRA per task, or there are more projectors than rates.
    """
    if config.adapter != "lora" or config.lora_scheme != "shared":
        raise FoveateError("checkpoints of Llama-AVSR have one LoRA for all rates: adapter 'lora', scheme 'shared'.")
    converted = {}
    for name, value in state.items():
        if name.startswith("video_encoder."):
            continue
        if (adapter := _ADAPTER.fullmatch(name)) is not None:
            layer = adapter[1].replace("llm.", "language_model.", 1)
            converted[f"{layer}.{adapter[3].lower()}_proj.adapter.shared.{adapter[2]}.weight"] = value
        elif (projector := _PROJECTOR.fullmatch(name)) is not None:
            rates, place = getattr(config, f"{projector[1]}_rates"), int(projector[2] or 0)
            if place >= len(rates):
                raise FoveateError(
                    f"the checkpoint has {name} and the configuration {len(rates)} rates of {projector[1]}."
                )
            converted[f"{projector[1]}_projector.{rates[place]}.{_LAYERS[projector[3]]}.{projector[4]}"] = value
        elif name.startswith("llm."):
            converted[name.replace("llm.", "language_model.", 1)] = value
        elif name.startswith("audio_encoder."):
            converted[name] = value
        else:
            raise FoveateError(f"{name} is no weight of Llama-AVSR with Whisper and AV-HuBERT.")
    return converted
