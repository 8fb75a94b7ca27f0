"""Base class of video connectors: from the features of the frames of a clip to the tokens of a language model.

A video connector is one file with two classes, as an image connector is: a frozen dataclass of its options, and the
module. `foveate.models.llava_video` names it by `connector_type` and `connector_options`. An image is a clip of
`image_frames` equal frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import ConfiguredModule, ConnectorOptions, O_co
from foveate.models.visual_memory import MemoryReader

__all__ = ["ClipShape", "ConnectorOptions", "Instruction", "VideoConnector"]


class ClipShape(NamedTuple):
    """Tokens of a clip: rasters of rows x columns, one after the other, and tokens that stand for the whole clip.

    Tokens that stand for no place, as those of learned queries, are one raster of one row.
    """

    frames: int
    rows: int
    columns: int
    extra: int = 0

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.frames * self.rows * self.columns + self.extra


@dataclass(frozen=True)
class Instruction:
    """The words that a clip is asked about, for connectors that read them.

    Args:
        ids: `(M,)`, of the tokenizer of the connector's text encoder.
        states: `(M, W)`, outputs of the model's text encoder for every word, mapped as the pooled one is; None: it has
            none.
        pooled: `(W,)`, its pooled output.
    """

    ids: Tensor
    states: Tensor | None = None
    pooled: Tensor | None = None


class VideoConnector(ConfiguredModule[O_co], Generic[O_co]):
    """A trainable module that maps the features of a clip to tokens of a language model.

    Subclasses create their layers in `__init__` after `super().__init__`, and implement `shape` and `connect`; those
    whose clips decoder layers read implement `connect_with_memory`, `decoder_layers`, `memory_size` and `build_reader`.
    What follows from sizes alone (`output_shape`, `image_frames`) reads nothing but `self.options`, because processors
    use it without weights (`without_weights`).

    Args:
        vision_hidden_size: Width `D` of the features.
        text_hidden_size: Width `d` of the embeddings that the language model reads.
        **options: Fields of `options_class`.

    Raises:
        FoveateError: There is no such option, or it has an impossible value.
    """

    #: `model_type` of the authors' checkpoints, and that of their language models in `transformers`.
    released_types: ClassVar[tuple[str, ...]] = ()
    released_text_type: ClassVar[str] = "qwen2"
    #: Names of readers' weights in the self-attention of the authors' decoder layers, with those in the reader.
    released_reader_keys: ClassVar[Mapping[str, str]] = {}
    #: Whether the number of tokens can be chosen at inference (`budget`).
    nested: ClassVar[bool] = False
    #: Whether it reads timestamps.
    reads_timestamps: ClassVar[bool] = False
    #: Whether the tokens of a raster stand for their own part of the frames.
    spatial: ClassVar[bool] = True

    @property
    def static_count(self) -> bool:
        """Whether the number of tokens follows from sizes alone.

        Otherwise `output_shape` is the greatest number, and prompts have so many placeholders, of which the model
        removes those that stay empty.
        """
        return True

    @property
    def reads_text(self) -> bool:
        """Whether tokens depend on the words that the clip is asked about (`text`)."""
        return False

    @property
    def reads_states(self) -> bool:
        """Whether it reads states of a text encoder of the model; otherwise it embeds the words itself."""
        return False

    @property
    def reads_joint_space(self) -> bool:
        """Whether features have an axis of two: those of the layer, and those in the joint space of image and text."""
        return False

    @property
    def static_cost(self) -> bool:
        """Whether the operations of `forward` follow from sizes alone, so that they can be counted without data."""
        return True

    @property
    def caption_frames(self) -> int | None:
        """Frames that a caption is about, for connectors that learn from captions (`supervised`)."""
        return None

    @property
    def image_frames(self) -> int:
        """Equal frames that an image is repeated to."""
        return 1

    def output_shape(self, frames: int, grid: Grid, budget: int | None = None) -> ClipShape:
        """Tokens of a clip of so many frames with features of `grid` rows and columns, from sizes alone.

        Args:
            frames: `T`.
            grid: Of the features of a frame.
            budget: Number of tokens, for nested connectors; None: their default.

        Raises:
            FoveateError: The connector takes no budget, or cannot give so many tokens, or cannot divide this clip.
        """
        if budget is not None and not self.nested:
            raise FoveateError(f"the connector {self.name} takes no budget: its options set the number of tokens.")
        if budget is not None and budget < 1:
            raise FoveateError(f"the connector {self.name} cannot make {budget} tokens of a clip.")
        if frames < 1:
            raise FoveateError(f"the connector {self.name} reads clips of at least one frame, not of {frames}.")
        return self.shape(frames, Grid(*grid), budget)

    @abstractmethod
    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """`output_shape` of checked arguments."""

    def decoder_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers, of a language model with so many, that read the memory of a clip (`connect_with_memory`)."""
        return ()

    def memory_size(self, frames: int, grid: Grid) -> int:
        """Tokens of the memory of a clip, from sizes alone."""
        return 0

    def build_reader(self, text_config: Any) -> MemoryReader:
        """What reads the memory in one of `decoder_layers`, for a language model of this configuration."""
        raise NotImplementedError  # only called where there are `decoder_layers`

    def forward(
        self,
        features: Tensor,
        grid: Grid,
        timestamps: Tensor | None = None,
        text: Instruction | None = None,
        budget: int | None = None,
    ) -> Tensor:
        """Map a clip to tokens: the first result of `encode`."""
        return self.encode(features, grid, timestamps, text, budget)[0]

    def encode(
        self,
        features: Tensor,
        grid: Grid,
        timestamps: Tensor | None = None,
        text: Instruction | None = None,
        budget: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Map a clip to tokens of the sequence, and to a memory that decoder layers read.

        Args:
            features: `(T, N, D)`, row-major; `(T, N, 2, D)` for connectors that read the joint space.
            grid: Rows and columns of the features; rows * columns = N.
            timestamps: `(T,)` in seconds, ascending; None: unknown, and frames are at equal distances.
            text: What the clip is asked about, for connectors that read it.
            budget: Number of tokens, for nested connectors; None: their default.

        Returns:
            The tokens `(n, d)`, in the order in which the language model reads them; n is the size of `output_shape`,
            or at most that where the number depends on the clip. And the memory `(S, d)`; None: it has none.

        Raises:
            FoveateError: Features or timestamps do not fit, or `output_shape` raises it, or text is missing or not
                read.
        """
        rows, columns = grid
        joint = " in two spaces" if self.reads_joint_space else ""
        wrong = joint and (features.ndim != 4 or features.shape[2] != 2)
        if wrong or features.ndim != (4 if joint else 3) or features.shape[1] != rows * columns:
            raise FoveateError(
                f"the connector {self.name} reads the features of {rows * columns} patches of every frame{joint}, not "
                f"a tensor of shape {tuple(features.shape)}."
            )
        shape = self.output_shape(len(features), Grid(rows, columns), budget)
        if timestamps is not None and timestamps.shape != features.shape[:1]:
            raise FoveateError(
                f"the connector {self.name} reads one timestamp for each of {len(features)} frames, not a tensor of "
                f"shape {tuple(timestamps.shape)}."
            )
        if self.reads_text and text is None:
            raise FoveateError(f"the connector {self.name} reads what the clip is asked about: give it as text.")
        if text is not None and not self.reads_text:
            raise FoveateError(f"the connector {self.name} does not read text.")
        return self.connect_with_memory(features, Grid(rows, columns), shape, timestamps, text)

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """Map checked features to tokens `(n, d)` of the shape; connectors without memory implement it."""
        raise NotImplementedError  # only called by `connect_with_memory`, which others implement

    def connect_with_memory(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> tuple[Tensor, Tensor | None]:
        """Map checked features to tokens `(n, d)` of the shape, and to a memory; see `encode`."""
        return self.connect(features, grid, shape, timestamps, text), None
