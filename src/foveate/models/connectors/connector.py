"""Base class of connectors: from the features of a vision tower to the tokens that a language model reads.

A connector is one file with two classes: a frozen dataclass of its options, and the module. Models name it by
`connector_type` and `connector_options` in their configuration.

A nested connector gives fewer tokens on request from one set of weights. Where it pools *after* its projector, as M3
does, a plan expresses the request as a method before the language model. Where the number of tokens changes what the
projector reads (TokenFLEX, Oryx, MQT, a Fourier transform before the projector), the connector must run again at the
other length: `docs/DESIGN.md`, "Connectors", says how plans will choose it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Generic, Literal

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import ConfiguredModule, ConnectorOptions, O_co, whole_number

__all__ = ["Connector", "ConnectorOptions", "whole_number"]


class Connector(ConfiguredModule[O_co], Generic[O_co]):
    """A trainable module that maps the features of a vision tower to tokens of a language model.

    Subclasses set the class variables, create their layers in `__init__` after `super().__init__`, and implement
    `connect`; those that change the grid also implement `reduced`. Everything that follows from sizes alone
    (`output_grid`, `multiple`, `feature_layers`) reads nothing but `self.options`, because processors and servers use
    it without weights (`without_weights`).

    Args:
        vision_hidden_size: Width `D` of the features.
        text_hidden_size: Width `d` of the embeddings that the language model reads.
        **options: Fields of `options_class`.

    Attributes:
        options: The checked options.

    Raises:
        FoveateError: There is no such option, or it has an impossible value.
    """

    #: Whether the number of tokens can be chosen at inference (`budget`), from one set of weights.
    nested: ClassVar[bool] = False
    #: How the paper of a nested connector trains its lengths: "all" averages the losses of all of them in every batch,
    #: "sampled" draws one of them for every batch. None for connectors of one length.
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = None
    #: Whether tokens depend on the prompt (`text`).
    reads_text: ClassVar[bool] = False
    #: Whether a token (i, j) of the output grid stands for the patches of its own part of the image. Where tokens stand
    #: for no part of it, as those of learned queries, the grid of n tokens is one row: 1 x n.
    spatial: ClassVar[bool] = True
    #: Whether every token is mapped by itself, so that packed images are one call.
    per_token: ClassVar[bool] = False

    @property
    def multiple(self) -> int:
        """Rows and columns of the features must be multiples of this number."""
        return 1

    @property
    def prefusion_layers(self) -> int:
        """Decoder layers in which text reads the image before the language model; such connectors have `project`."""
        return 0

    def feature_layers(self, num_layers: int) -> tuple[int, ...]:
        """Indices into the hidden states of a vision tower with `num_layers` blocks (0: the embeddings).

        Empty for connectors that read the layer that the model selects. Otherwise features have an axis for the layers,
        also where it is only one.
        """
        return ()

    def output_grid(self, grid: Grid, budget: int | None = None) -> Grid:
        """Rows and columns of the tokens for features of `grid` rows and columns, from sizes alone.

        Args:
            grid: Of the features.
            budget: Number of tokens, for nested connectors; None: their default.

        Raises:
            FoveateError: The connector takes no budget, or cannot give so many tokens, or cannot divide this grid.
        """
        if budget is not None and not self.nested:
            raise FoveateError(f"the connector {self.name} takes no budget: its options set the number of tokens.")
        rows, columns = grid
        if rows % self.multiple or columns % self.multiple:
            raise FoveateError(
                f"the connector {self.name} needs rows and columns that are multiples of {self.multiple}, and this "
                f"image has {rows} x {columns} patches."
            )
        return self.reduced(Grid(rows, columns), budget)

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """`output_grid` of a grid that `multiple` divides and a budget that is allowed; the same grid by default."""
        return grid

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """Numbers of tokens that the paper trains a nested connector at, in ascending order, from sizes alone.

        Args:
            grid: Of the features; numbers that it does not allow are left out.
        """
        return ()

    def forward(
        self, features: Tensor, grid: Grid, budget: int | None = None, text: Tensor | None = None
    ) -> tuple[Tensor, Grid]:
        """Map images of one grid to tokens.

        Args:
            features: `(B, N, D)`, row-major; `(B, N, K, D)` where the connector reads K layers (`feature_layers`).
            grid: Rows and columns of the features; rows * columns = N.
            budget: Number of tokens, for nested connectors; None: their default.
            text: `(B, T, d)`, hidden states of each image's prompt up to the end of its question, for connectors that
                read text; models give the last one alone (`foveate.models.connectors.prompts`).

        Returns:
            The tokens `(B, n, d)`, row-major, and their grid, which has n cells.

        Raises:
            FoveateError: Features do not fit the grid or the layers, or `output_grid` raises it, or text is missing or
                not read.
        """
        output = self.output_grid(grid, budget)
        rows, columns = grid
        levels = " with an axis for the layers" if self.feature_layers(1) else ""
        if features.ndim != (4 if levels else 3) or features.shape[1] != rows * columns:
            raise FoveateError(
                f"the connector {self.name} reads the features of {rows * columns} patches{levels}, not a tensor of "
                f"shape {tuple(features.shape)}."
            )
        if self.reads_text and text is None:
            raise FoveateError(f"the connector {self.name} reads the prompt: give it as text.")
        if text is not None and not self.reads_text:
            raise FoveateError(f"the connector {self.name} does not read text.")
        return self.connect(features, Grid(rows, columns), output, text), output

    @abstractmethod
    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """Map checked features to tokens `(B, n, d)` of the grid `output`; see `forward`."""
