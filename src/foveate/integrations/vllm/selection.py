"""Token selection for the images or clips of one encoder call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.connector import ConnectorMethod
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Need, Selection, VisualTokens
from foveate.integrations.vllm.measurement import measuring
from foveate.integrations.vllm.plans import EnginePlans, ServedPlan


def chosen(
    serving: EnginePlans,
    settings: Sequence[ServedPlan],
    calls: Sequence[slice],
    encode: Callable[[slice], Sequence[Tensor]],
    blocks: Any,
    attention: Callable[[Any], nn.Module],
    core: Any,
    call: Mapping[str, Any],
    *,
    modality: str = "image",
    width: int | None = None,
    plain: Callable[[Tensor], Tensor] = lambda values: values,
) -> list[tuple[Tensor, Tensor]]:
    """Encode the images or clips of a call and select among their tokens.

    Args:
        serving: The engine's.
        settings: The plan of every image or clip.
        calls: The images or clips of each call of the encoder (`encoder_calls`).
        encode: Runs the encoder on those of one call and gives the features (N, D) of each; under a setting with
            `places`, those of its length stand there.
        blocks: The encoder's blocks.
        attention: The `MMEncoderAttention` of a block.
        core: What the family of the model knows a model by: its configuration and its encoder.
        call: What the family asks of a call.
        modality: "image", or "video" for clips.
        width: How many columns of the features the language model reads first; those after them (DeepStack) follow
            what was chosen. None: all.
        plain: What is to be done with values (T, ...) of the encoder's tokens before the family takes them.

    Returns:
        For every image or clip its features (k, D), and the places (k,) int64 ascending of the kept tokens.
    """
    needs = list(dict.fromkeys(need for setting in settings for need in setting.needs))
    with measuring(blocks, attention, needs, serving.tower.has_cls) as recorded:
        features = [one for call in calls for one in encode(call)]
    output = SimpleNamespace(pooler_output=features)
    family = serving.family
    layouts = family.layouts(core, modality, call, output)
    if modality == "video":
        layouts = [
            replace(layout, timestamps=family.timestamps(core, call, clip, len(layouts), len(layout.crops)))
            for clip, layout in enumerate(layouts)
        ]
    measured: list[dict[Need, Tensor]] = [{} for _ in features]
    for need, recordings in recorded.items():
        value = plain(torch.cat(recordings))
        if need.kind == "cls_feature":
            spread = family.per_image(core, call, value)
        else:
            flat = value[:, None] if value.ndim == 1 else value
            spread = family.spread(core, modality, call, output, flat)
            spread = [image_features[:, 0] for image_features in spread] if value.ndim == 1 else spread
        for image, image_features in zip(measured, spread, strict=True):
            image[need] = image_features
    shortened = []
    for setting, image_features, layout, values in zip(settings, features, layouts, measured, strict=True):
        tokens = VisualTokens(
            image_features[:, :width],
            layout.crops,
            values,
            layout.separators,
            layout.size,
            tower=serving.tower,
            timestamps=None if layout.timestamps is None else layout.timestamps.to(image_features.device),
        )
        kept = shorten(setting, tokens)
        main = image_features[kept.indices, :width] if kept.features is None else kept.features.to(image_features)
        rest = () if width is None else (kept.apply(image_features[:, width:]),)
        shortened.append((torch.cat([main, *rest], dim=1), kept.indices))
    return shortened


def encoder_calls(tokens: Sequence[int], most: int) -> list[slice]:
    """Divide the images of a step among calls of the encoder.

    vLLM's scheduler fills a step with the tokens that stay, so it can contain many times the images that memory was
    measured with.

    Args:
        tokens: Uncompressed tokens of every image.
        most: Tokens of a call; an image with more has a call of its own.

    Returns:
        The images of each call, which follow each other.
    """
    ends: list[int] = []
    total = 0
    for place, count in enumerate(tokens):
        total += count
        if place and total > most:
            ends.append(place)
            total = count
    return [slice(start, stop) for start, stop in itertools.pairwise((0, *ends, len(tokens)))]


def view_tokens(config: Any) -> int:
    """Patches of one view of a model whose views are squares of one size."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def shorten(setting: ServedPlan, tokens: VisualTokens) -> Selection:
    """Apply the steps of a plan to one image or clip, one after the other, on the tokens at the places of the setting.

    Raises:
        AssertionError: a method left another number of tokens than it had announced.
    """
    count = len(tokens)
    places = torch.arange(count) if setting.places is None else torch.tensor(setting.places)
    selection = Selection(places.to(tokens.device))
    if setting.places is not None:
        tokens = tokens.take(selection)
    for step in setting.plan.steps if setting.plan is not None else ():
        if isinstance(step.method, ConnectorMethod):
            continue  # the connector has run at its length
        assert isinstance(step.method, PreLLMMethod)
        step_selection = step.method(tokens, step.count(len(tokens)))
        selection = selection.then(step_selection, count)
        tokens = tokens.take(step_selection)
    assert len(selection) == setting.count(count), f"{setting}: {len(selection)} of {count} tokens stay"
    return selection
