"""The interface of model architectures that recipes can train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from foveate.clips import Clip
from foveate.core.errors import FoveateError
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import connector_of_sizes, options_of_config
from foveate.models.llava_uhd.tokenizer import byte_tokenizer
from foveate.training.examples import Example

#: Receives what a hook recorded: a name (`tokens`, `windows`, `grids` or `cls`) and the tensor.
Keep = Callable[[str, torch.Tensor], None]


class Architecture:
    """A kind of model that recipes can train; the subclasses are the list of what is possible."""

    #: As recipes write it (`model.new.architecture`).
    name: ClassVar[str]
    model_class: ClassVar[type]
    processor_class: ClassVar[type]
    #: Configuration class of the vision tower, whose fields `model.new.vision` sets.
    vision_class: ClassVar[type]
    #: Other configuration classes, by the `type` that recipes name (`model.new.vision.type`).
    vision_classes: ClassVar[Mapping[str, type]] = {}
    #: What a recipe may set of the image processor.
    image_settings: ClassVar[tuple[str, ...]]
    #: Name of the vision tower in parameter names, with dots around it.
    tower: ClassVar[str]
    #: Name of what merges tokens within the tower, and of the connector, in parameter names; None without one.
    stage: ClassVar[str | None] = None
    connector: ClassVar[str | None] = None
    #: Whether a recipe can choose an encoder of `foveate.models.encoders` as the vision tower.
    takes_encoders: ClassVar[bool] = False
    #: Whether a recipe can choose the connector.
    takes_connectors: ClassVar[bool] = False
    #: Whether `clips` makes inputs of clips.
    takes_clips: ClassVar[bool] = False
    #: Whether a recipe can add a text encoder that reads instructions (`model.new.instruction`), to `config` too.
    takes_instructions: ClassVar[bool] = False

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer `bytes`, with the special tokens that the model wants."""
        return byte_tokenizer()

    def connector_of(self, kind: str, options: Mapping[str, Any]) -> Any:
        """The connector that a recipe names, without weights.

        Raises:
            FoveateError: There is no such connector or option, or an option has an impossible value.
        """
        return connector_of_sizes(kind, options)

    def processor(
        self,
        vision: Any,
        images: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector | None = None,
    ) -> Any:
        """The processor of a new model; `connector` only where `takes_connectors`."""
        raise NotImplementedError

    def config(self, vision: Any, text: Any, processor: Any, connector: Connector | None = None) -> Any:
        """The configuration of a new model; `text` may still be changed."""
        raise NotImplementedError

    def model(self, config: Any) -> Any:
        """A new model of this configuration."""
        return self.model_class(config)

    def stages(self, config: Any) -> int:
        """A token that the language model reads covers 2^s x 2^s patches; this is s."""
        raise NotImplementedError

    def stages_of_processor(self, processor: Any) -> int:
        """`stages`, from the processor of the model."""
        raise NotImplementedError

    def token_width(self, config: Any) -> int:
        """Width D of the tokens that `watch` keeps."""
        raise NotImplementedError

    def unit(self, config: Any) -> int:
        """Pixels whose multiples the sides of images are: those of a token, or of as many as a connector merges."""
        unit = config.vision_config.patch_size * 2 ** self.stages(config)
        if not hasattr(config, "connector_type"):
            return unit
        return unit * connector_of_sizes(config.connector_type, options_of_config(config)).multiple

    def capture_tokens(self, model: Any, keep: Keep) -> None:
        """Hook the model so that every pass keeps its `tokens` (L', D), packed and row-major within an image.

        Where there are such, also the `windows` (M, 4, D) that enter the last stage with the `grids` (n, 2) after it,
        and the `cls` tokens (n, D).
        """
        raise NotImplementedError

    def has_windows(self, config: Any) -> bool:
        """Whether `watch` keeps windows."""
        return False

    def has_window(self) -> bool:
        """Whether `images` and `encode` take a window: small images whatever the processor's own size."""
        return False

    def has_cls(self, config: Any) -> bool:
        """Whether `watch` keeps [CLS] tokens."""
        return False

    def initialise(self, model: Any) -> None:
        """Change the first weights of a new model where those of transformers can be bettered."""

    def enable_windows(self, model: Any) -> None:
        """Let a model's tower take windows, where `has_window` and it would not by itself."""

    def encode(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        """Run the vision tower alone."""
        raise NotImplementedError

    def images(
        self, processor: Any, pictures: Sequence[Any], window: int | None = None
    ) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Inputs of the vision tower for pictures, and each picture's grid (rows, columns) of patches.

        Where a picture is several views, its height and width in pixels take the place of the grid.

        `window` makes images of that many patches a side, or of as many in all, after `take_windows`; only where
        `has_window`.
        """
        raise NotImplementedError

    def clips(
        self, processor: Any, clips: Sequence[Clip]
    ) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]]]:
        """Inputs of the vision tower for clips, and the grid (time, rows, columns) of each one's patches.

        Raises:
            FoveateError: models of this kind read no clips.
        """
        raise FoveateError(f"{self.excludes_clips()}.")

    def excludes_clips(self) -> str | None:
        """Why models of this kind cannot be trained on clips; None: they can."""
        if self.takes_clips:
            return None
        return f"{self.name} reads no clips: train it on images, or choose qwen2.5-vl or llava-video"

    def instructions(self, processor: Any, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Inputs that hold what images and clips are asked about, for connectors that read it."""
        return {}

    def text_inputs(self, processor: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs next to the ids (B, T), their mask and the images."""
        return {}

    def part_of(self, name: str) -> str:
        """The part of `recipe.PARTS` that the model's parameter `name` belongs to."""
        if self.tower in name:
            return "stages" if self.stage is not None and self.stage in name else "vision_tower"
        return "connector" if self.connector is not None and self.connector in name else "language_model"


def clip_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer `bytes`, with a placeholder for clips too."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<video>"]}, replace_extra_special_tokens=False)
    tokenizer.video_token = "<video>"
    tokenizer.init_kwargs["video_token"] = "<video>"  # what a saved tokenizer knows
    return tokenizer
