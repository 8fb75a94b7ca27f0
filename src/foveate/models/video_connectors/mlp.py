"""The two linear layers that several video connectors end in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """`linear_2(gelu(linear_1(x)))`, on every token by itself.

    Args:
        width: Width of the input.
        output: Width of the output.
        hidden: Width between the layers; None: that of the output.
    """

    def __init__(self, width: int, output: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = output if hidden is None else hidden
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, output)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., width)` to `(..., output)`."""
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))


def released_mlp(theirs: str, ours: str, layers: Sequence[int] = (0, 2)) -> dict[str, str]:
    """Names of an `nn.Sequential` of two linear layers in authors' weights, with the names here."""
    return {rf"{theirs}\.{layer}\.": f"{ours}.linear_{number}." for number, layer in enumerate(layers, start=1)}
