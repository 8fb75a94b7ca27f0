"""Trainable modules in a frozen language model: LoRA, LoRA per rate, and the experts of MoME.

An adapter is parallel to a module: its output is added to that of the module, by a forward hook. The module keeps its
class and the names of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError


class Adapter(nn.Module):
    """Base class of what is added to the output of a module."""

    def reset_parameters(self) -> None:
        """Initialize the parameters so that the adapter adds nothing."""
        raise NotImplementedError


class LoRA(Adapter):
    """Low-rank update `scale * up(down(x))` of a linear layer, without bias.

    The initial `up` is zero. (In the authors' code `down` is, and `up` has the initial values that `down` has here.
    Both add nothing at first.)

    Args:
        input_size: Of the layer.
        output_size: Of the layer.
        rank: Inner width.
        scale: Of the update.
    """

    def __init__(self, input_size: int, output_size: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(input_size, rank, bias=False)
        self.up = nn.Linear(rank, output_size, bias=False)

    def reset_parameters(self) -> None:
        """See `Adapter.reset_parameters`."""
        init.kaiming_uniform_(self.down.weight, a=5**0.5)
        init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., input_size)` to `(..., output_size)`."""
        return self.scale * self.up(self.down(x))


class LoRAOfRates(Adapter):
    """Sum of a LoRA of all rates and one of the rates in use, after Llama-MTSK (arXiv 2503.06362).

    MS has only the first, SS only the second, and MSS both.

    Args:
        sizes: Input and output size of the layer, rank and scale.
        shared: Whether there is one of all rates.
        keys: Names of the rates that have one; empty: none has.
    """

    def __init__(self, sizes: tuple[int, int, int, float], shared: bool, keys: Iterable[str]) -> None:
        super().__init__()
        self.shared = LoRA(*sizes) if shared else None
        self.of_rates = nn.ModuleDict({key: LoRA(*sizes) for key in keys})
        #: Name of the rates in use.
        self.active = ""

    def reset_parameters(self) -> None:
        """Its parts initialize themselves."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., input_size)` to `(..., output_size)`."""
        parts: list[nn.Module] = [] if self.shared is None else [self.shared]
        if self.of_rates:
            parts.append(self.of_rates[self.active])
        return torch.stack([part(x) for part in parts]).sum(dim=0)


class MoME(Adapter):
    """Mixture of Matryoshka experts, shared by all rates (MoME, arXiv 2510.04136).

        E_n(h) = up_n(GELU(down_n(h)))
        g = softmax(router(h)), zero except for the K largest
        MoME(h) = sum over shared experts E_n(h) + sum over routed experts g_n E_n(h)

    Experts are narrow: all of them together are one MLP whose hidden units are scaled by the gates, so that they run as
    two matrix products without gathering tokens. From the paper: no code is public. Whether the K gates are divided by
    their sum is not stated; by default they are not. Layers have no bias here.

    Args:
        width: Width D of the tokens.
        num_experts: Routed experts N_r.
        num_experts_per_token: K.
        num_shared_experts: N_s.
        expert_size: Bottleneck b.
        normalize_gates: Divide the K gates by their sum.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        num_experts_per_token: int,
        num_shared_experts: int,
        expert_size: int,
        normalize_gates: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts_per_token = num_experts_per_token
        self.num_shared_experts = num_shared_experts
        self.expert_size = expert_size
        self.normalize_gates = normalize_gates
        count = num_shared_experts + num_experts
        self.router = nn.Linear(width, num_experts, bias=False)
        self.down = nn.Linear(width, count * expert_size, bias=False)
        self.up = nn.Linear(count * expert_size, width, bias=False)
        self._routed: tuple[Tensor, Tensor] | None = None
        #: Whether the model is trained, also where its frozen language model is in evaluation mode.
        self.recording = False

    @property
    def active_parameters(self) -> int:
        """Parameters that a token uses: the router, N_s shared and K routed experts."""
        experts = self.num_shared_experts + self.num_experts_per_token
        return self.router.weight.numel() + 2 * experts * self.expert_size * self.router.in_features

    def take_routed(self) -> tuple[Tensor, Tensor]:
        """Softmax of the router and which experts were chosen, both `(B, L, N_r)`, of the last training pass, once."""
        routed, self._routed = self._routed, None
        assert routed is not None
        return routed

    def reset_parameters(self) -> None:
        """See `Adapter.reset_parameters`."""
        for module in (self.router, self.down):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        init.zeros_(self.up.weight)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates, softmax of the router and chosen experts, all `(..., N_r)`."""
        probabilities = self.router(x).softmax(dim=-1, dtype=torch.float32)
        best = probabilities.topk(self.num_experts_per_token, dim=-1).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, best, 1.0)
        gates = probabilities * chosen
        if self.normalize_gates:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        return gates.to(x.dtype), probabilities, chosen

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, L, D)` to `(B, L, D)`."""
        gates, probabilities, chosen = self.gates(x)
        if self.training or self.recording:
            self._routed = (probabilities, chosen)
        shared = gates.new_ones(*gates.shape[:-1], self.num_shared_experts)
        hidden = F.gelu(self.down(x)).unflatten(-1, (-1, self.expert_size))
        return self.up((hidden * torch.cat([shared, gates], dim=-1).unsqueeze(-1)).flatten(-2))


def balance_loss(routed: Sequence[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
    """Load-balancing loss, mean over layers: `N_r * sum_n f_n P_n`, 1 for a perfect balance.

    f_n is the share of expert n in all choices and P_n its mean probability (Switch Transformer, arXiv 2101.03961,
    equation 4, with K choices per token).

    Args:
        routed: Probabilities and chosen experts `(B, L, N_r)` of every layer.
        mask: `(B, L)`, 0 for padding.
    """
    weight = (mask / mask.sum()).unsqueeze(-1).to(torch.float32)
    losses = []
    for probabilities, chosen in routed:
        share = (chosen * weight).sum(dim=(0, 1)) / chosen[0, 0].sum()
        losses.append(probabilities.shape[-1] * (share * (probabilities * weight).sum(dim=(0, 1))).sum())
    return torch.stack(losses).mean()


def add_adapter(module: nn.Module, adapter: Adapter) -> None:
    """Add the output of an adapter to that of a module, for the same input; its name there is `adapter`."""
    module.add_module("adapter", adapter)
    module.register_forward_hook(_add, with_kwargs=True)


def _add(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    # Found on the module, not in a closure, so that a copy of the model has the hooks of its own adapters.
    hidden = args[0] if args else kwargs["hidden_states"]
    delta = module.get_submodule("adapter")(hidden)
    return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta


def add_adapters(config: Any, layers: Iterable[nn.Module]) -> list[Any]:
    """Add the adapters of a configuration to decoder layers.

    Args:
        config: `AVSRConfig`.
        layers: Decoder layers with `self_attn.q_proj`, `self_attn.v_proj` and `mlp`, as those of Llama and Qwen2.

    Returns:
        The adapters.

    Raises:
        FoveateError: a layer has other names.
    """
    width, adapters = config.text_config.hidden_size, []
    for layer in layers:
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        if attention is None or mlp is None or not hasattr(attention, "q_proj") or not hasattr(attention, "v_proj"):
            raise FoveateError(
                f"adapters need self_attn.q_proj, self_attn.v_proj and mlp in every layer, which {type(layer).__name__}"
                " has not; use a Llama or Qwen2 language model."
            )
        if config.adapter == "lora":
            rank, scale = round(width / config.lora_reduction), config.lora_alpha / config.lora_reduction
            if rank < 1:
                raise FoveateError(f"lora_reduction {config.lora_reduction} leaves no rank of a width of {width}.")
            keys = [] if config.lora_scheme == "shared" else [rates.key for rates in config.all_rates]
            for linear in (attention.q_proj, attention.v_proj):
                sizes = (linear.in_features, linear.out_features, rank, scale)
                adapters.append(LoRAOfRates(sizes, config.lora_scheme != "per_rate", keys))
                add_adapter(linear, adapters[-1])
        else:
            experts = MoME(
                width,
                config.num_experts,
                config.num_experts_per_token,
                config.num_shared_experts,
                config.expert_size,
                config.normalize_gates,
            )
            adapters.append(experts)
            add_adapter({"layer": layer, "attention": attention, "mlp": mlp}[config.mome_placement], experts)
    return adapters
