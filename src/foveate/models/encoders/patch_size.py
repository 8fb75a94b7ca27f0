"""Change the patch size of a trained encoder."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

from torch import nn

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder
from foveate.models.encoders.layers import Positions
from foveate.models.vit_uhd.patch_embedding import KernelResize, resize_patch_kernel

PatchKernel = Literal[KernelResize, "initialize"]
E = TypeVar("E", bound=Encoder)


def with_patch_size(
    encoder: E, patch_size: int, *, image_size: int | None = None, kernel: PatchKernel = "pseudo-inverse"
) -> E:
    """Return a copy of an encoder for other patches, to be trained further.

    The number of tokens changes by the square of the ratio, and no weight but the patch kernel and the table of
    positions does. Positions are resized by the encoder's own interpolation. With `image_size` scaled like
    `patch_size`, the number of tokens stays: this separates the effect of finer patches from that of more tokens.

    Args:
        encoder: One whose first layer is a convolution over patches, such as `adventurer`, `plain_vit`, `lookupvit` or
            `oryx_vit`.
        patch_size: Side of the new patches in pixels.
        image_size: Side of the images that the copy is for; None: that of the encoder.
        kernel: `"pseudo-inverse"` or `"adjoint"`, the resizes of `resize_patch_kernel`, or `"initialize"`: a new
            random projection, as the authors of Scaling Laws in Patchification (arXiv 2502.03738) train it.

    Raises:
        FoveateError: The encoder has no such layer, or a value is impossible.
    """
    name = encoder.config.model_type
    if kernel not in get_args(PatchKernel):
        raise FoveateError(f"unknown patch kernel {kernel!r}: choose one of {', '.join(get_args(PatchKernel))}.")
    patches, positions = getattr(encoder, "patches", None), getattr(encoder, "positions", None)
    if not isinstance(patches, nn.Conv2d) or not isinstance(positions, Positions):
        raise FoveateError(
            f"the encoder {name} is not a convolution over patches with a table of positions, so that its patch size "
            "cannot be changed."
        )
    sizes = {"patch_size": patch_size, "image_size": encoder.config.image_size if image_size is None else image_size}
    config = type(encoder.config).from_dict(encoder.config.to_dict() | sizes)
    resized = type(encoder)(config).to(encoder.device, encoder.dtype)
    # Of most encoders the grid of an image of `image_size`; that of `oryx_vit` is the same for all.
    grid = Grid(*resized.positions.weight.shape[-2:])
    state = encoder.state_dict() | {"positions.weight": positions(grid).detach()}
    if kernel == "initialize":
        state |= {key: value for key, value in resized.state_dict().items() if key.startswith("patches.")}
    else:
        state["patches.weight"] = resize_patch_kernel(patches.weight, patch_size, method=kernel)
    resized.load_state_dict(state)
    resized.set_attn_implementation(encoder.config._attn_implementation)
    return resized.train(encoder.training)
