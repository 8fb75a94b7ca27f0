"""The two-layer connector of LLaVA: one token per feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn
from transformers.activations import ACT2FN

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector, ConnectorOptions


@dataclass(frozen=True)
class MLPOptions(ConnectorOptions):
    """Options of connectors that end in two linear layers.

    Args:
        activation: Name of an activation of `transformers`; "gelu" is the exact GELU.
        bias: Whether both linear layers have a bias.
    """

    activation: str = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.activation not in ACT2FN:
            raise FoveateError(f"there is no activation {self.activation!r}; possible are {', '.join(sorted(ACT2FN))}")
        if not isinstance(self.bias, bool):
            raise FoveateError(f"bias must be true or false, not {self.bias!r}.")


M_co = TypeVar("M_co", bound=MLPOptions, covariant=True)


class MLP(Connector[M_co], Generic[M_co]):
    """Base class of connectors that end in the two linear layers of LLaVA: `linear_2(act(linear_1(x)))`."""

    #: Names of LLaVA's checkpoints, where the layers are a sequence.
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {r"0\.": "linear_1.", r"2\.": "linear_2."}

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        self.linear_1 = nn.Linear(self.input_width(vision_hidden_size), text_hidden_size, bias=self.options.bias)
        self.act = ACT2FN[self.options.activation]
        self.linear_2 = nn.Linear(text_hidden_size, text_hidden_size, bias=self.options.bias)

    def input_width(self, vision_hidden_size: int) -> int:
        """Width of the input of the first layer for features of width `D`."""
        return vision_hidden_size

    def project(self, tokens: Tensor) -> Tensor:
        """Map every token `(..., input width)` to an embedding `(..., d)`."""
        return self.linear_2(self.act(self.linear_1(tokens)))


class MLPConnector(MLP[MLPOptions]):
    """`linear_2(act(linear_1(x)))`, applied to each visual token on its own; the number of tokens is kept.

    The connector of LLaVA-1.5. LLaVA-UHD v3 (arXiv 2511.21150) needs no more than this, because its vision tower has
    already merged the tokens.
    """

    name: ClassVar[str] = "mlp"
    title: ClassVar[str] = "Improved Baselines with Visual Instruction Tuning"
    paper: ClassVar[str] = "arXiv 2310.03744"
    per_token: ClassVar[bool] = True
    released_types: ClassVar[tuple[str, ...]] = ("mlp2x_gelu",)
    options_class: ClassVar = MLPOptions

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        return self.project(features)
