"""Base class of the configurations of encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid


class EncoderConfig(PreTrainedConfig):
    """Configuration of an [`Encoder`].

    Subclasses set `model_type`, by which models and recipes name the encoder, add the hyperparameters of the paper with
    its defaults, check them in `check`, and implement `reduced`. Everything that follows from sizes alone
    (`output_grid`) reads the configuration, because processors and servers use it without weights.

    Args:
        num_channels (`int`): Channels C of an image.
        image_size (`int`): Side in pixels of the images that the encoder is trained for.
        patch_size (`int`): Side in pixels of what the first layer makes one token of.
        hidden_size (`int`): Width D of the tokens in `last_hidden_state`.
        num_hidden_layers (`int`): Blocks; there is one more hidden state than blocks.
        initializer_range (`float`): Standard deviation of initial weights.

    Raises:
        FoveateError: A value is impossible.
    """

    #: `image_mean` and `image_std` of the pixels that the authors' weights read; empty: those of CLIP.
    released_normalization: ClassVar[Mapping[str, list[float]]] = {}
    #: Options of `Encoder.forward` by which it reads the items of a batch as frames of clips: `frame_counts` and
    #: `timestamps`. Empty: every frame is encoded as an image.
    clip_options: ClassVar[tuple[str, ...]] = ()

    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("num_channels", "image_size", "patch_size", "hidden_size", "num_hidden_layers"):
            self.positive(name)
        self.check()
        self.output_grid(self.image_size, self.image_size)

    def positive(self, name: str) -> None:
        """Refuse a field that is no whole number from 1 on.

        Raises:
            FoveateError: It is not.
        """
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FoveateError(
                f"{name} of the encoder {self.model_type} must be a whole number from 1 on, not {value!r}."
            )

    def positive_list(self, name: str) -> None:
        """Refuse a field that is no list of whole numbers from 1 on, and make a list of a tuple.

        Raises:
            FoveateError: It is not.
        """
        values = getattr(self, name)
        if not isinstance(values, (list, tuple)) or not all(type(value) is int and value >= 1 for value in values):
            raise FoveateError(
                f"{name} of the encoder {self.model_type} must be a list of whole numbers from 1 on, not {values!r}."
            )
        setattr(self, name, list(values))

    def check(self) -> None:
        """Refuse impossible values of the fields that a subclass adds; `FoveateError` in one sentence."""

    @property
    def spatial(self) -> bool:
        """Whether a token (i, j) of the output grid stands for its own part of the image."""
        return True

    @property
    def multiple(self) -> int:
        """Sides of images in pixels must be multiples of this number."""
        return self.patch_size

    def output_grid(self, height: int, width: int) -> Grid:
        """Rows and columns of the tokens of an image, from its size in pixels alone.

        Raises:
            FoveateError: The encoder cannot read images of this size.
        """
        multiple = self.multiple
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise FoveateError(
                f"the encoder {self.model_type} needs images whose sides are multiples of {multiple} pixels, not "
                f"{height} x {width}."
            )
        return self.reduced(Grid(height // self.patch_size, width // self.patch_size))

    def reduced(self, patches: Grid) -> Grid:
        """`output_grid` of an image with so many patches; the same by default.

        Raises:
            FoveateError: The encoder cannot reduce them.
        """
        return patches

    def tower_options(self) -> dict[str, Any]:
        """Options of `Encoder.forward` in the vision tower of a language model.

        With them the tokens are those of `output_grid`, in training too, and nothing is computed that only a training
        of the encoder by itself reads.
        """
        return {}

    def length_grids(self) -> tuple[Grid, ...]:
        """Grids of the output that one set of weights was trained at, ascending; empty: `output_grid` alone."""
        return ()

    def length_options(self, grid: Grid) -> dict[str, Any]:
        """Options of `Encoder.forward` for one of `length_grids`, in place of those of `tower_options`."""
        return {}

    def crop_options(self, grids: Sequence[Grid]) -> dict[str, Any]:
        """Options of `Encoder.forward` for a batch of crops, besides `tower_options`.

        Encoders that exchange information between crops of one image override it; others read every crop alone.

        Args:
            grids: Rows and columns of the crops of every image. The batch holds each image as a whole first, and then
                its crops, row-major.
        """
        return {}

    @classmethod
    def released_fields(cls, config: Mapping[str, Any], tower: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Fields of this configuration for the vision tower of a LLaVA in the authors' layout.

        Args:
            config: Content of `config.json`, with fields `mm_*`.
            tower: Fields of the tower's own configuration, where they are known.

        Returns:
            The fields with their `model_type`; None: the tower is another one.

        Raises:
            FoveateError: A field has an impossible value.
        """
        return None


class StagedConfig(EncoderConfig):
    """Configuration of an encoder whose stages have fewer and wider tokens, one after the other.

    `hidden_size` and `num_hidden_layers` follow from the stages and can be left out.

    Args:
        depths (`list[int]`): Blocks of every stage.
        hidden_sizes (`list[int]`): Width of every stage.
    """

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    depths: list[int] | tuple[int, ...] = ()
    hidden_sizes: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self.positive_list("depths")
        self.positive_list("hidden_sizes")
        if not self.depths or len(self.depths) != len(self.hidden_sizes):
            raise FoveateError(
                f"the encoder {self.model_type} needs as many depths as hidden_sizes and at least one of them, not "
                f"{len(self.depths)} and {len(self.hidden_sizes)}."
            )
        if self.hidden_size is None:
            self.hidden_size = self.hidden_sizes[-1]
        if self.num_hidden_layers is None:
            self.num_hidden_layers = sum(self.stage_blocks)
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        if self.hidden_size != self.hidden_sizes[-1]:
            raise FoveateError(
                f"hidden_size of {self.model_type} must be the width of its last stage, {self.hidden_sizes[-1]}, not "
                f"{self.hidden_size}."
            )
        if self.num_hidden_layers != (blocks := sum(self.stage_blocks)):
            raise FoveateError(
                f"num_hidden_layers of {self.model_type} must be the number of its blocks, {blocks}, not "
                f"{self.num_hidden_layers}."
            )

    @property
    def stage_blocks(self) -> list[int]:
        """Blocks of every stage that the model has."""
        return list(self.depths)
