"""Pooling weights of the content-adaptive stages of a ViT-UHD."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foveate.models.vit_uhd import ViTUHDModel
from foveate.runtime.patches import in_this_thread


@dataclass(frozen=True)
class Pooling:
    """Effect of content-adaptive pooling in one stage, as maps over the tokens that entered it.

    A stage turns the tokens x_s of a 2 x 2 window into y = sum_s a_s * x_s, with weights a_s of their own for every
    channel. Where the tokens of a window are alike, any weights give the same y, so the weights alone are not
    informative; what they change does. With m the mean of the window, y - m = sum_s (a_s - 1/4) * (x_s - m), and the
    effect of token s is the length of its term along y - m.

    Attributes:
        stage: name of the stage.
        weight: ``(rows, columns)``, weight of each token averaged over channels; 1/4 is average pooling.
        effect: ``(rows, columns)``, effect of each token as a fraction of the typical length of m. The four effects of
            a window sum to the distance of its output from average pooling.
        spread: how far the weight of one channel typically is from 1/4 (root mean square).
    """

    stage: str
    weight: np.ndarray
    effect: np.ndarray
    spread: float


def pooling_of(net: Any, inputs: Any) -> list[Pooling]:
    """Compute the pooling maps of each content-adaptive stage with one more encoder run without the plan."""
    encoder = net.get_encoder(modality="image")
    if not isinstance(encoder, ViTUHDModel):
        return []
    maps: list[Pooling] = []
    rows, columns = inputs["grid_hws"][0].tolist()
    with ExitStack() as hooks, torch.inference_mode():
        for number, index in enumerate(encoder.config.merger_layer_index):
            merger = encoder.get_submodule(f"encoder.blocks.{index}.merger")
            if not hasattr(merger, "weights"):
                continue
            grid = (rows >> number, columns >> number)

            def before(
                stage: Any, windows: tuple[torch.Tensor], name: str = f"stage {number + 1}", grid: Any = grid
            ) -> None:
                weights = stage.weights(windows[0]).float()
                maps.append(
                    Pooling(
                        name,
                        weight=_as_map(weights.mean(-1), grid),
                        effect=_as_map(pooling_effect(windows[0].float(), weights), grid),
                        spread=float((weights - 0.25).square().mean().sqrt()),
                    )
                )

            hooks.callback(merger.register_forward_pre_hook(in_this_thread(before)).remove)
        encoder(pixel_values=inputs["pixel_values"], grid_hws=inputs["grid_hws"])
    return maps


def pooling_effect(windows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the effect ``(M, 4)`` of each token of windows ``(M, 4, D)`` with pooling weights ``(M, 4, D)``."""
    mean = windows.mean(dim=1, keepdim=True)
    terms = (weights - 0.25) * (windows - mean)
    change = terms.sum(dim=1, keepdim=True)
    direction = change / change.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(change.dtype).tiny)
    return (terms * direction).sum(dim=-1) / mean.norm(dim=-1).square().mean().sqrt()


def _as_map(values: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Arrange values of windows ``(M, 4)``, windows and tokens row-major, in the grid ``(rows, columns)``."""
    rows, columns = grid
    placed = values.reshape(rows // 2, columns // 2, 2, 2).permute(0, 2, 1, 3)
    return placed.reshape(rows, columns).cpu().numpy()
