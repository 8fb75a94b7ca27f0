"""The images of a call of an encoder, to the tokens that their plans leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Need, Selection, VisualTokens
from foveate.integrations.vllm.measuring import measuring
from foveate.integrations.vllm.setting import Serving, Setting


def chosen(
    serving: Serving,
    settings: Sequence[Setting],
    encode: Callable[[], Sequence[Tensor]],
    blocks: Any,
    attention: Callable[[Any], nn.Module],
    core: Any,
    call: Mapping[str, Any],
    *,
    width: int | None = None,
    plain: Callable[[Tensor], Tensor] = lambda values: values,
) -> list[tuple[Tensor, Tensor]]:
    """Encode the images of a call and choose among their tokens.

    Args:
        serving: The engine's.
        settings: The plan of every image.
        encode: Runs the encoder and gives the features (N, D) of every image.
        blocks: The encoder's blocks.
        attention: The `MMEncoderAttention` of a block.
        core: What the family of the model knows a model by: its configuration and its encoder.
        call: What the family asks of a call.
        width: How many columns of the features the language model reads first; those after them (DeepStack) follow
            what was chosen. None: all.
        plain: What is to be done with values (T, ...) of the encoder's tokens before the family takes them.

    Returns:
        For every image its features (k, D), and the places (k,) int64 ascending at which they stand.
    """
    needs = list(dict.fromkeys(need for setting in settings for need in setting.needs))
    with measuring(blocks, attention, needs, serving.tower.has_cls) as found:
        features = list(encode())
    output = SimpleNamespace(pooler_output=features)
    family = serving.family
    layouts = family.layouts(core, "image", call, output)
    measured: list[dict[Need, Tensor]] = [{} for _ in features]
    for need, calls in found.items():
        value = plain(torch.cat(calls))
        if need.kind == "cls_feature":
            spread = family.per_image(core, call, value)
        else:
            flat = value[:, None] if value.ndim == 1 else value
            spread = family.spread(core, "image", call, output, flat)
            spread = [own[:, 0] for own in spread] if value.ndim == 1 else spread
        for image, own in zip(measured, spread, strict=True):
            image[need] = own
    shortened = []
    for setting, own, layout, values in zip(settings, features, layouts, measured, strict=True):
        tokens = VisualTokens(own[:, :width], layout.crops, values, layout.separators, layout.size, tower=serving.tower)
        whole = shorten(setting, tokens)
        main = own[whole.indices, :width] if whole.features is None else whole.features.to(own)
        rest = () if width is None else (whole.apply(own[:, width:]),)
        shortened.append((torch.cat([main, *rest], dim=1), whole.indices))
    return shortened


def shorten(setting: Setting, tokens: VisualTokens) -> Selection:
    """What the steps of a plan leave of one image, one after the other.

    Raises:
        AssertionError: a method left another number of tokens than it had announced.
    """
    count = len(tokens)
    whole = Selection(torch.arange(count, device=tokens.device))
    for step in setting.plan.steps if setting.plan is not None else ():
        assert isinstance(step.method, PreLLMMethod)
        own = step.method(tokens, step.count(len(tokens)))
        whole = whole.then(own, count)
        tokens = tokens.take(own)
    assert len(whole) == setting.count(count), f"{setting}: {len(whole)} of {count} tokens stay"
    return whole
