"""Weights of a ConvNeXt in the layout of timm, which OpenCLIP uses for its image towers, under the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.convllava.modeling import ConvLLaVAModel

#: Weights of the image tower by name; those before them are of OpenCLIP. All others are texts and heads.
_TRUNK = re.compile(r"(?:module\.)?(?:visual\.)?(?:trunk\.)?((?:stem|stages)\..+)")
_NAMES = {
    r"stem\.0\.": "embeddings.patch_embeddings.",
    r"stem\.1\.": "embeddings.layernorm.",
    r"stages\.(\d+)\.downsample\.([01])\.": r"encoder.stages.\1.downsampling_layer.\2.",
    r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.": r"encoder.stages.\1.layers.\2.dwconv.",
    r"stages\.(\d+)\.blocks\.(\d+)\.norm\.": r"encoder.stages.\1.layers.\2.layernorm.",
    r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.": r"encoder.stages.\1.layers.\2.pwconv\3.",
    r"stages\.(\d+)\.blocks\.(\d+)\.gamma$": r"encoder.stages.\1.layers.\2.layer_scale_parameter",
}


def convert_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of a ConvNeXt of timm or OpenCLIP to those of a [`ConvLLaVAModel`].

    Weights of the text tower and of heads are left out. Two of the linear layers of a block may be 1 x 1 convolutions.

    Args:
        state: The state dict of a model of OpenCLIP or of a ConvNeXt of timm.

    Raises:
        FoveateError: There is no ConvNeXt in it, or a weight of its stages has another name.
    """
    converted = {}
    for name, value in state.items():
        if match := _TRUNK.fullmatch(name):
            target = _name(match[1])
            linear = ".pwconv" in target and value.ndim == 4
            converted[target] = value.flatten(1) if linear else value
    if not converted:
        raise FoveateError("the weights hold no ConvNeXt in the layout of timm or OpenCLIP.")
    return converted


def initialize_from_clip(model: ConvLLaVAModel, state: Mapping[str, Tensor]) -> None:
    """Copy a ConvNeXt of timm or OpenCLIP into a model, whose further stages keep their weights.

    Args:
        model: With the stages of the ConvNeXt and any number after them.
        state: See `convert_clip_state`.

    Raises:
        FoveateError: The ConvNeXt is another network than the model's first stages.
    """
    theirs, ours = convert_clip_state(state), model.state_dict()
    stages = {number for name in theirs if (number := _stage(name)) is not None}
    expected = {name for name in ours if (number := _stage(name)) is None or number <= max(stages, default=-1)}
    shapes = (name for name in expected & theirs.keys() if ours[name].shape != theirs[name].shape)
    if wrong := sorted({*(expected ^ theirs.keys()), *shapes}):
        raise FoveateError(f"the ConvNeXt is another network than the model's first stages, such as in {wrong[0]}.")
    model.load_state_dict(theirs, strict=False)


def _name(name: str) -> str:
    """The name here.

    Raises:
        FoveateError: It is no name of timm.
    """
    for pattern, target in _NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, target, name)
    raise FoveateError(f"{name!r} is no weight of a ConvNeXt in the layout of timm.")


def _stage(name: str) -> int | None:
    """The stage of a weight here; None: it is of the stem."""
    match = re.match(r"encoder\.stages\.(\d+)\.", name)
    return int(match[1]) if match else None
