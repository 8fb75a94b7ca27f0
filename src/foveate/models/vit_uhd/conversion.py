"""Turn a pretrained native-resolution vision transformer into ViT-UHD, with patches and stages of your choice.

This is the "refit" of LLaVA-UHD v3 (arXiv 2511.21150): the pretrained patch kernel is resized to finer patches
(`foveate.models.vit_uhd.patch_embedding`) and stages are put after chosen blocks. Unchanged patches and no stages give
the source's own output; stages start as average pooling (or, for `"early"` ones, as the block before them once more),
and a training stage then absorbs what changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from foveate.core.errors import FoveateError
from foveate.models.vit_uhd.configuration import ROPE_LAYOUTS, ViTUHDConfig
from foveate.models.vit_uhd.early_compression import EarlyCompressor
from foveate.models.vit_uhd.patch_embedding import KernelResize, ResizeMode, resize_patch_kernel
from foveate.models.vit_uhd.rotary_channels import reorder_rotary
from foveate.models.vit_uhd.sources import SourceSpec, read_source
from foveate.models.vit_uhd.vit_uhd import ViTUHDModel

MAX_PATCH_SIZE = 256
"""Side in pixels of the largest patch that a conversion makes; the largest in use are 64."""


def from_vit(
    source: nn.Module | str | Path | SourceSpec,
    patch_size: int | None = None,
    merger_layer_index: Sequence[int] | None = None,
    merging_method: str | Sequence[str] = "content-adaptive",
    *,
    resize_mode: ResizeMode = "bilinear",
    resize_antialias: bool = True,
    resize_method: KernelResize = "pseudo-inverse",
    rope_layout: str | None = None,
    final_norm: bool | None = None,
    early_per_token_norm: bool = False,
) -> ViTUHDModel:
    """A pretrained native-resolution vision transformer as ViT-UHD.

    With `patch_size=None` and no stages the result returns what the source's tower returns before its own patch
    merger or pooling head, for images in row-major order. (Towers of Qwen take patches in 2 x 2 blocks and two
    equal frames of each; here an image is given once, row by row.)

    Args:
        source: The vision tower or a model that contains it, a folder, or a Hub id. MoonViT (`kimi_k25`), SigLIP2
            NaFlex, Qwen2-VL, Qwen2.5-VL, and ViT-UHD itself are possible. Or what `read_source` made of one of them.
            It is not changed.
        patch_size: Side of the new patches in pixels; `None` keeps the source's.
        merger_layer_index: 0-based blocks after which a stage runs. `None`: as the source has them, that is none,
            except for ViT-UHD.
        merging_method: Kind of the stages named by `merger_layer_index`, see `ViTUHDConfig`. A stage that a ViT-UHD
            source already has, at the same block and of the same kind, keeps its weights.
        resize_mode: Interpolation for the patch kernel, `"bilinear"` or `"bicubic"`.
        resize_antialias: Whether that interpolation is antialiased.
        resize_method: `"pseudo-inverse"` or `"adjoint"`, see `foveate.models.vit_uhd.patch_embedding`.
        rope_layout: Rotary positions of the result: `"interleaved"` (plain; the default), `"half"` (the same
            positions in another order of channels), or `"hierarchical"` (positions stay in units of the finest
            patch after a merge). All three are the same function without stages.
        final_norm: `None`: as the source; `True`: with a norm, which for the Qwen towers is the first layer of
            their patch merger and worth having in front of a new connector; `False`: without.
        early_per_token_norm: For `"early"` stages, see `ViTUHDConfig`.

    Returns:
        The model in evaluation mode, in the source's dtype and on its device. Stages are initialised with the
        global random generator of torch.

    Raises:
        FoveateError: If there is no supported tower in the source, or the options cannot be met.
    """
    tower = source if isinstance(source, SourceSpec) else read_source(source)
    tower = replace(tower, weights=dict(tower.weights))
    config = _configure(tower, patch_size, merger_layer_index, merging_method, early_per_token_norm)
    _choose_rope(tower, config, rope_layout)
    _choose_final_norm(tower, config, final_norm)
    weights = tower.weights
    kernel = weights["patch_embed.proj.weight"]
    weights["patch_embed.proj.weight"] = resize_patch_kernel(
        kernel, config["patch_size"], mode=resize_mode, antialias=resize_antialias, method=resize_method
    )
    return _load(tower, ViTUHDConfig.from_dict(config)).to(kernel.device, kernel.dtype).eval()


def _configure(
    tower: SourceSpec,
    patch_size: int | None,
    stages: Sequence[int] | None,
    method: str | Sequence[str],
    early_per_token_norm: bool,
) -> dict[str, Any]:
    """Fields of the new configuration, apart from positions and the final norm."""
    config = {"merger_layer_index": [], **tower.fields}
    config["num_channels"] = tower.weights["patch_embed.proj.weight"].shape[1]
    if patch_size is not None:
        if patch_size > MAX_PATCH_SIZE:
            raise FoveateError(f"patch_size={patch_size} is too large; possible are 1 to {MAX_PATCH_SIZE} pixels.")
        config["patch_size"] = patch_size
    if stages is not None:
        config["merger_layer_index"] = list(stages)
        config["merging_method"] = method if isinstance(method, str) else list(method)
        config["early_per_token_norm"] = early_per_token_norm
    return config


def _choose_rope(tower: SourceSpec, config: dict[str, Any], layout: str | None) -> None:
    """Settle the rotary layout of the result and bring queries and keys into it."""
    target = layout or tower.fields.get("rope_layout", "interleaved")
    if target not in ROPE_LAYOUTS or "none" in (target, tower.rotary_channels):
        if target == tower.rotary_channels:
            return
        possible = "none" if tower.rotary_channels == "none" else ", ".join(ROPE_LAYOUTS[:-1])
        raise FoveateError(f"rope_layout={target!r} is not possible for {tower.family}; possible are {possible}.")
    config["rope_layout"] = target
    for name, tensor in tower.weights.items():
        if ".wqkv." in name and ".merger." not in name:
            tower.weights[name] = reorder_rotary(tensor, config["num_attention_heads"], tower.rotary_channels, target)


def _choose_final_norm(tower: SourceSpec, config: dict[str, Any], wanted: bool | None) -> None:
    """Settle whether a norm follows the last block, and which."""
    name = "encoder.final_layernorm"
    has_norm = tower.fields.get("final_norm", True)
    if wanted is None or wanted == has_norm:
        return
    config["final_norm"] = wanted
    if not wanted:
        for part in ("weight", "bias"):
            tower.weights.pop(f"{name}.{part}", None)
    elif tower.merger_norm is None:
        raise FoveateError(f"final_norm=True is not possible: this {tower.family} has no norm after its blocks.")
    else:
        tower.weights.update({f"{name}.{part}": tensor for part, tensor in tower.merger_norm.items()})


def _load(tower: SourceSpec, config: ViTUHDConfig) -> ViTUHDModel:
    """The model with the tower's weights; stages that the tower has not are initialised."""
    model = ViTUHDModel(config)
    had = _stages(ViTUHDConfig.from_dict({"merger_layer_index": [], **tower.fields}))
    new = {index: kind for index, kind in _stages(config).items() if had.get(index) != kind}
    if config.window_position_embedding and config.num_stages != len(had):
        raise FoveateError(
            f"this ViT-UHD has learned positions inside windows of {len(had)} stages; the number of stages cannot be "
            f"changed to {config.num_stages}."
        )
    replaced = tuple(f"encoder.blocks.{index}.merger." for index in had.keys() - (_stages(config).keys() - new.keys()))
    weights = {name: tensor for name, tensor in tower.weights.items() if not name.startswith(replaced)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    fresh = tuple(f"encoder.blocks.{index}.merger." for index in new)
    lost = [name for name in missing if not name.startswith(fresh)] + unexpected
    if lost:
        raise FoveateError(f"the {tower.family} of the source does not fit its configuration: {', '.join(lost[:3])}.")
    for index in new:
        block = model.encoder.blocks[index]
        if isinstance(block.merger, EarlyCompressor):
            block.merger.init_from_block(block)
    return model


def _stages(config: ViTUHDConfig) -> dict[int, tuple[str, bool]]:
    """Kind of the stage after each block that has one."""
    kinds = zip(config.merger_layer_index or (), config.stage_methods, strict=True)
    return {index: (kind, kind == "early" and config.early_per_token_norm) for index, kind in kinds}


__all__ = ["from_vit"]
