"""An optimiser that combines Muon for weight matrices with AdamW for everything else.

Sources: Muon (Jordan et al., 2024), and "Muon is Scalable for LLM Training" (Liu et al., 2025, arXiv:2502.16982), whose
scale of the update lets one learning rate serve both kinds of parameters. AdamW is that of `torch.optim`; Muon follows
`torch.optim.Muon` step for step, but its iteration can run in float32, which a processor without bfloat16 arithmetic
does many times faster, and matrices of one shape go through it together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

#: Decay rate of Muon's momentum: the one of both sources.
MOMENTUM = 0.95
#: Coefficients of the Newton-Schulz iteration (Jordan et al.), and how often it runs.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonalised(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices (n, rows, columns) with singular values near 1, by Newton-Schulz iterations computed in `dtype`.

    With X divided by its Frobenius norm, five times: A = X X^T, X <- a X + (b A + c A A) X.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, decoupled weight decay and updates as large as AdamW's usually are.

    Args:
        params: Matrices, or groups of them, as other optimisers take them.
        lr: Learning rate.
        weight_decay: Decay of the weights, multiplied by the rate.
        dtype: Precision of the iteration.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon moves matrices, and here is a parameter of shape {tuple(parameter.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; `closure` recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = orthogonalised(torch.stack([self._momentum(p) for p in parameters]), self._dtype)
                rate = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-rate)
        return loss

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        """Update the momentum, and return the gradient with Nesterov's momentum."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None  # parameters without one are skipped
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW over one list of parameter groups.

    Args:
        groups: Groups of parameters as `torch.optim.AdamW` takes them, each with `muon`: whether Muon updates it. Only
            matrices may.
        betas: Decay rates of AdamW's averages.
        dtype: Precision of Muon's iteration.

    Raises:
        ValueError: a group for Muon contains a parameter that is not a matrix.
    """

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], dtype: torch.dtype = torch.bfloat16
    ) -> None:
        muon_groups = [group for group in groups if group["muon"]]
        adamw_groups = [group for group in groups if not group["muon"]]
        self._parts: list[torch.optim.Optimizer] = []
        if muon_groups:
            self._parts.append(Muon(muon_groups, dtype=dtype))
        if adamw_groups:
            self._parts.append(torch.optim.AdamW(adamw_groups, betas=betas, fused=True))
        # The groups of the parts themselves, not copies: a schedule that sets `lr` here sets it there.
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step of both; `closure` recomputes the loss first."""
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
        """Load a `state_dict`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading replaces the groups of a part.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
