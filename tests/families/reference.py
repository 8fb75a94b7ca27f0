"""What is compared with: a model's own eager attention, and its language model given only what stays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import FoveateError, compat
from foveate.core.tokens import Need
from foveate.families import family_of
from foveate.runtime.report import Report
from tests.families.zoo import Specimen

Patch = pytest.MonkeyPatch


#: Hubs receive this many times the mean.
HUBS = 1.02


def hub_attention(weights: Tensor, received: Tensor, present: Tensor) -> Tensor:
    """Attention (N,) that hubs pay, from the weights (N, N) of one sequence."""
    hubs = present & (received > HUBS * received[present].mean())
    if not bool(hubs.any()):
        hubs[received.argmax()] = True
    return weights[hubs].mean(dim=0)


def encoder_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Of the inputs of a model those of its encoder."""
    return {
        k: v
        for k, v in inputs.items()
        if k not in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    }


def encode(model: Any, inputs: dict[str, Any]) -> Any:
    """Images or clips by the model's own functions."""
    call = encoder_inputs(inputs)
    modality = "video" if "pixel_values_videos" in call else "image"
    with torch.no_grad():
        return getattr(family_of(model).core(model), f"get_{modality}_features")(**call)


def measured(model: Any, inputs: dict[str, Any], needs: list[Need], patch: Patch) -> list[dict[Need, Tensor]]:
    """What the probes of an attached plan say of every image."""
    with patch.context() as context:
        context.setattr("foveate.runtime.attach.needs_of", lambda *args: (tuple(needs), ()))
        with foveate.compress(model, "divprune:50%"):
            return encode(model, inputs).foveate_encoded.measured


def eager(model: Any, inputs: dict[str, Any], patch: Patch) -> dict[Need, Tensor]:
    """Of one image: features, mean keys, attention received and of hubs at every block, in the encoder's order.

    The weights are those that the model's own eager attention returns.
    """
    family = family_of(model)
    blocks = family.blocks(family.core(model))
    layers = {family.attention(block): layer for layer, block in enumerate(blocks)}
    found: dict[Need, list[Tensor]] = {}

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        def attend(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
            output, weights = original(module, query, key, *args, **kwargs)
            if module in layers:
                weights_of_all = weights.mean(dim=1)
                present = weights_of_all.sum(dim=1) > 0  # nobody looks at padding, and what padding asks counts nothing
                received = (weights_of_all * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True)
                found.setdefault(Need("received", layers[module]), []).append(received.flatten())
                hubs = [hub_attention(*image) for image in zip(weights_of_all, received, present, strict=True)]
                need = Need("hub_attention", layers[module], threshold=HUBS)
                found.setdefault(need, []).append(torch.cat(hubs))
                found.setdefault(Need("keys", layers[module]), []).append(key.mean(dim=1).flatten(0, 1))
            return output, weights

        return attend

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[Need("features", layer)] = [hidden.flatten(0, -2)]

        return hook

    hooks = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    home: Any = sys.modules[type(next(iter(layers))).__module__]
    name = "eager_attention_forward"
    if not hasattr(home, name):
        home, name = sys.modules["foveate.models.vit_uhd.attention"], "eager_attention"
    with patch.context() as context, attention(model, "eager"):
        context.setattr(home, name, recording(getattr(home, name)))
        encode(model, inputs)
    for hook in hooks:
        hook.remove()
    return {need: torch.cat(values) for need, values in found.items()}


@contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    """Another attention implementation inside the context."""
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def check_static(model: Any, inputs: dict[str, Any], name: str, expected: Tensor) -> None:
    """Answers with a static cache are as expected, or refused where `generate` makes other masks than the model."""
    if name == "gemma4" and not compat.SLICES_MM_TOKEN_TYPES:  # causal ones, also within images
        with pytest.raises(FoveateError, match="use a dynamic one"):
            answers(model, inputs, cache_implementation="static")
    else:
        assert answers(model, inputs, cache_implementation="static").equal(expected)


def answers(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    """Four tokens, greedily where not said otherwise."""
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, **options)
    return tokens[:, inputs["input_ids"].shape[1] :]


def logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Logits of a forward pass."""
    with torch.no_grad():
        return model(**inputs).logits


def only_kept(model: Any, inputs: dict[str, Any], report: Report, patch: Patch) -> Tensor:
    """Logits (1, P, V) of the language model called by hand with the embeddings that stay, at their positions.

    What a selection merged is there in place of the embeddings, and in the DeepStack features.
    """
    family = family_of(model)
    core = family.core(model)
    text: Any = family.text(core)
    seen: dict[str, Any] = {}
    forward = text.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return forward(*args, **kwargs)

    with patch.context() as context:
        context.setattr(text, "forward", spy)
        logits(model, inputs)
    stays = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    embeds, planes = seen["inputs_embeds"].clone(), []
    if seen.get("deepstack_visual_embeds") is not None:
        visual = seen["visual_pos_masks"]
        planes = [embeds.new_zeros(embeds.shape[1:]) for _ in seen["deepstack_visual_embeds"]]
        for plane, values in zip(planes, seen["deepstack_visual_embeds"], strict=True):
            plane[visual[0]] = values
    for modality in ("image", "video"):
        own = [image for image in report.images if image.modality == modality]
        if not own:
            continue
        columns = (inputs["input_ids"][0] == family.placeholder(core, modality)).nonzero().flatten()
        for image, part in zip(own, columns.split([image.tokens_in for image in own]), strict=True):
            stays[part] = False
            kept = part[image.selection.indices]
            stays[kept] = True
            if image.selection.features is not None:
                embeds[0, kept] = image.selection.features
            for plane in planes:
                plane[kept] = image.selection.apply(plane[part])
    short: dict[str, Any] = {"attention_mask": stays[stays][None].long(), "inputs_embeds": embeds[:, stays]}
    positions = seen.get("position_ids")
    short["position_ids"] = (torch.arange(len(stays))[None] if positions is None else positions)[..., stays]
    if planes:
        short["visual_pos_masks"] = visual[:, stays]
        short["deepstack_visual_embeds"] = [plane[stays & visual[0]] for plane in planes]
    if seen.get("per_layer_inputs") is not None:
        short["per_layer_inputs"] = seen["per_layer_inputs"][:, stays]
    with torch.no_grad():
        return model.get_output_embeddings()(text(**short).last_hidden_state)


def row(specimen: Specimen, sizes: Any, number: int) -> dict[str, Any]:
    """A prompt with the images that it has as row `number` of a batch, and text of its own."""
    return specimen.prompts(specimen.model(), (sizes,), seed=1000 * number)
