"""Swap the connector of a LLaVA: the same vision tower and language model with another connector between them."""

from __future__ import annotations

import copy
import logging
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from foveate.core.errors import FoveateError
from foveate.core.tokens import encoder_grid
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.mlp import MLP
from foveate.models.connectors.registry import connector_of_config
from foveate.models.llava.configuration import FoveateLlavaConfig
from foveate.models.llava.modeling import FoveateLlavaForConditionalGeneration
from foveate.models.llava.prefusion import build_prefusion
from foveate.models.llava.processing import FoveateLlavaProcessor, encoder_fields, pair

log = logging.getLogger("foveate.models")
#: The two linear layers of LLaVA, which several connectors end in.
PROJECTOR_LAYERS = ("linear_1.", "linear_2.")
#: Where `foveate.runtime` notes the plan that is attached to a model.
ATTACHED_PLAN = "_foveate_handle"
#: Fields of the configuration that are not copied: those of the model class, and those that the connector sets.
REPLACED_FIELDS = (
    "architectures", "connector_options", "connector_type", "model_type", "text_config", "transformers_version",
    "vision_config",
)  # fmt: skip


class SwappedLlava(NamedTuple):
    """A model whose connector was swapped, and its processor.

    Attributes:
        model: The new model.
        processor: It counts the tokens of the new connector.
    """

    model: FoveateLlavaForConditionalGeneration
    processor: FoveateLlavaProcessor


def swap_connector(
    model: LlavaForConditionalGeneration,
    processor: Any,
    connector_type: str,
    connector_options: dict[str, Any] | None = None,
    *,
    output_loading_info: bool = False,
) -> Any:
    """Give a LLaVA another connector: the same vision tower and language model, ready to train.

    The modules of the tower and of the language model are shared with `model`, not copied; `model` keeps its own
    connector and continues to work, until one of the two is trained.

    The trained projector is kept where the new connector ends in the two linear layers of LLaVA, with the same shapes,
    such as `m3`, `average` and `oryx`: `m3` at its full length then gives the outputs of `model`. Others, such as
    `mqt` and `tokenflex`, start from random weights. New weights, which must be trained, are logged, and so are weights
    of `model` that the new model does not have.

    Args:
        model: A LLaVA of `transformers` or of foveate, with CLIP, SigLIP or an encoder of foveate.
        processor: Of the model.
        connector_type: A connector of `foveate.models.connectors`.
        connector_options: Its options by name; default: those of its paper.
        output_loading_info: Also return which weights are new and which are not used.

    Returns:
        The new model, in the dtype, on the device and in the mode (training or evaluation) of `model`, and its
        processor, a `FoveateLlavaProcessor`. With `output_loading_info` also a dict of sorted lists of names, as
        `from_pretrained` of `transformers` returns it: `missing_keys`, weights of the new model that are initialized,
        and `unexpected_keys`, weights of `model` that the new model does not have.

    Raises:
        FoveateError: The model is no LLaVA with a supported tower, is wrapped by PEFT, has a plan or quantized weights,
            or is spread over several devices; or there is no such connector or option, or its default number of tokens
            is not possible for the images of this tower.

    Example:
        >>> import foveate
        >>> model, processor = foveate.swap_connector(*foveate.load("llava-hf/llava-1.5-7b-hf"), "m3")
        >>> model.save_pretrained("llava-m3")
        >>> processor.save_pretrained("llava-m3")
    """
    _check(model)
    config = _config(model, connector_type, connector_options)
    with torch.device("meta"):  # its tower and language model are replaced at once
        swapped: Any = FoveateLlavaForConditionalGeneration(config)
    core, old = swapped.model, model.model
    config.vision_config, config.text_config = old.vision_tower.config, old.language_model.config
    core.vision_tower, core.language_model, swapped.lm_head = old.vision_tower, old.language_model, model.lm_head
    width = config.vision_config.hidden_size * _levels(config.vision_feature_layer)
    connector = connector_of_config(config, width)
    _check_length(connector, config)
    core.multi_modal_projector = _initialized(connector, swapped, model)
    if count := connector.prefusion_layers:
        core.prefusion = _initialized(build_prefusion(config.text_config, count), swapped, model)
    shared = _shared_weights(old.multi_modal_projector, connector)
    connector.load_state_dict(shared, strict=False, assign=True)
    swapped.generation_config = copy.deepcopy(model.generation_config)
    swapped.train(model.training)
    info = _loading_info(swapped, model, set(shared))
    result = SwappedLlava(swapped, _processor(processor, config))
    pair(*result)
    return (*result, info) if output_loading_info else result


def _check(model: Any) -> None:
    """Raise FoveateError for a model whose connector cannot be swapped."""
    if not isinstance(model, LlavaForConditionalGeneration):
        raise FoveateError(
            f"swap_connector takes a LlavaForConditionalGeneration, not {type(model).__name__}; adapters of PEFT are "
            "added after it."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise FoveateError(
            "the model is quantized: swap the connector of the model without quantization, save it, and load the saved "
            "folder with quantization."
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise FoveateError("the model is spread over several devices: load it on one, swap its connector and save it.")
    if ATTACHED_PLAN in vars(model.model):
        raise FoveateError("a plan is attached to the model: detach it with restore() first.")


def _config(model: Any, connector_type: str, connector_options: dict[str, Any] | None) -> Any:
    """The configuration of the new model."""
    fields = {name: value for name, value in model.config.to_dict().items() if name not in REPLACED_FIELDS}
    fields["attn_implementation"] = model.config._attn_implementation
    return FoveateLlavaConfig(
        **fields,
        vision_config=copy.deepcopy(model.config.vision_config),
        text_config=copy.deepcopy(model.config.text_config),
        connector_type=connector_type,
        connector_options=copy.deepcopy(connector_options),
    )


def _levels(layer: int | list[int]) -> int:
    """Number of hidden states that are concatenated."""
    return 1 if isinstance(layer, int) else len(layer)


def _check_length(connector: Connector, config: Any) -> None:
    """Check that the connector has a default number of tokens for images of the tower's size.

    Raises:
        FoveateError: It has none; options of the connector can set another one.
    """
    side = config.vision_config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    connector.output_grid(encoder_grid(config.vision_config, height, width))


@torch.no_grad()
def _initialized(module: nn.Module, swapped: Any, model: Any) -> nn.Module:
    """Initialize new layers as models do, in the dtype and on the device of the old connector."""
    module.apply(swapped._init_weights)
    example = next(model.model.multi_modal_projector.parameters())
    return module.to(example.device, example.dtype)


def _shared_weights(old: nn.Module, new: Connector) -> dict[str, nn.Parameter]:
    """Weights of the old connector that the new one continues with, all that it has in common with it or none.

    They are those of the two linear layers of LLaVA, and all weights where both are of the same class.
    """
    theirs, ours = dict(old.named_parameters()), dict(new.named_parameters())
    if type(old) is not type(new):
        # A LLaVA of transformers always has the two layers.
        if not isinstance(new, MLP) or (isinstance(old, Connector) and not isinstance(old, MLP)):
            return {}
        theirs = {name: weight for name, weight in theirs.items() if name.startswith(PROJECTOR_LAYERS)}
    if any(name not in ours or ours[name].shape != weight.shape for name, weight in theirs.items()):
        return {}
    return theirs


def _loading_info(swapped: Any, model: Any, shared: set[str]) -> dict[str, list[str]]:
    """Names of new weights, and of those that are not used; both are logged."""
    new = {id(weight): name for name, weight in swapped.named_parameters()}
    old = {id(weight): name for name, weight in model.named_parameters()}
    info = {
        "missing_keys": sorted(name for identity, name in new.items() if identity not in old),
        "unexpected_keys": sorted(name for identity, name in old.items() if identity not in new),
    }
    kind = swapped.config.connector_type
    if info["missing_keys"]:
        log.warning("New weights of the connector %s, which must be trained: %s", kind, ", ".join(info["missing_keys"]))
    if info["unexpected_keys"]:
        log.warning("Weights that the new model does not have: %s", ", ".join(info["unexpected_keys"]))
    return info


def _processor(processor: Any, config: Any) -> FoveateLlavaProcessor:
    """The processor of the new model."""
    return FoveateLlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=processor.num_additional_image_tokens,
        connector_type=config.connector_type,
        connector_options=config.connector_options,
        **encoder_fields(config.vision_config),
    )
