"""Muon for the weight matrices of a stage, AdamW for everything else, as one optimiser.

Sources: Muon (Jordan et al., 2024), and "Muon is Scalable for LLM Training" (Liu et al., 2025, arXiv:2502.16982), whose
scale of the update lets one learning rate serve both kinds of parameters. The steps themselves are those of
`torch.optim`; what is here joins the two, as a trainer saves, schedules and steps one optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Decay rate of Muon's momentum: the one of both sources.
MOMENTUM = 0.95


class MuonAdamW(torch.optim.Optimizer):
    """Both optimisers over one list of groups.

    Args:
        groups: Groups of parameters as `torch.optim.AdamW` takes them, and in each `muon`: whether Muon moves it. Only
            matrices may.
        betas: Decay rates of AdamW's averages.

    Raises:
        ValueError: a group of Muon's holds a parameter that is no matrix.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        chosen = [group for group in groups if group["muon"]]
        rest = [group for group in groups if not group["muon"]]
        self._parts: list[torch.optim.Optimizer] = []
        if chosen:
            self._parts.append(torch.optim.Muon(chosen, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
        if rest:
            self._parts.append(torch.optim.AdamW(rest, betas=betas, fused=True))
        # The groups of the parts themselves, not copies: a schedule that sets `lr` here sets it there.
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both; `closure` computes the loss again first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both parts, in their order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading replaces a part's groups by new ones.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
