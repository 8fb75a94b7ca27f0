"""Configuration of ConvLLaVA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

from transformers.activations import ACT2FN

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.configuration import StagedConfig

#: Model type of `ConvNextConfig` of `transformers`, in whose layout the authors published their towers.
RELEASED_MODEL_TYPE = "convnext"
#: Names of these towers, with the side of their images; all have the sizes that are the defaults here.
_RELEASED_TOWER = re.compile(r"(?:.*/)?ConvLLaVA-ConvNeXt-(\d+)/?")
#: Fields of `ConvNextConfig` that mean the same here. Its `layer_norm_eps` belongs to a norm of the pooled map.
_SHARED = (
    "num_channels",
    "patch_size",
    "hidden_sizes",
    "depths",
    "hidden_act",
    "initializer_range",
    "layer_scale_init_value",
    "drop_path_rate",
    "image_size",
)


class ConvLLaVAConfig(StagedConfig):
    """Configuration of a [`ConvLLaVAModel`]; the defaults are the authors' encoder for 1536 pixels.

    Takes what [`StagedConfig`] takes, and in addition the following. Four stages are ConvNeXt, and the fifth is that of
    ConvLLaVA.

    Args:
        drop_last_block (`bool`): Leave out the last block of the last stage, as the authors' code does for
            `mm_vision_select_layer=-2`; checkpoints may hold it.
        hidden_act (`str`): Activation of the blocks.
        layer_scale_init_value (`float`): Initial value of the layer scale, which new blocks are multiplied by; 0: none.
        drop_path_rate (`float`): Of stochastic depth in training, from 0 in the first block to this in the last.
        layer_norm_eps (`float`): Of the layer norms.

    Example:
        >>> config = ConvLLaVAConfig()
        >>> [config.output_grid(side, side).size for side in (768, 1024, 1536)]
        [144, 256, 576]
    """

    model_type = "convllava"

    image_size: int = 1536
    patch_size: int = 4
    depths: list[int] | tuple[int, ...] = (3, 3, 27, 3, 6)
    hidden_sizes: list[int] | tuple[int, ...] = (192, 384, 768, 1536, 3072)
    drop_last_block: bool = False
    hidden_act: str = "gelu"
    layer_scale_init_value: float = 1e-6
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-6

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        super().check()
        if self.drop_last_block and self.depths[-1] < 2:
            raise FoveateError("drop_last_block of convllava needs a last stage of two blocks or more.")
        if self.hidden_act not in ACT2FN:
            raise FoveateError(f"hidden_act of convllava must be one of {', '.join(ACT2FN)}, not {self.hidden_act!r}.")
        if not 0 <= self.drop_path_rate < 1:
            raise FoveateError(f"drop_path_rate of convllava must be from 0 on and below 1, not {self.drop_path_rate}.")

    @property
    def stage_blocks(self) -> list[int]:
        """Blocks of every stage that the model has."""
        return [*self.depths[:-1], self.depths[-1] - bool(self.drop_last_block)]

    @property
    def multiple(self) -> int:
        """See `EncoderConfig.multiple`; the stride of the last stage, 64 of the authors' encoder."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    def reduced(self, patches: Grid) -> Grid:
        """See `EncoderConfig.reduced`."""
        factor = self.multiple // self.patch_size
        return Grid(patches.rows // factor, patches.columns // factor)

    def with_stage(self, depth: int = 6, width: int = 3072, **fields: Any) -> Self:
        """This configuration with one more stage, which halves rows and columns; the defaults are the authors'.

        Weights of a ConvNeXt load into a model of the result, and the new stage is initialized:

            config = ConvLLaVAConfig.from_pretrained(folder).with_stage(image_size=1536)
            model = ConvLLaVAModel.from_pretrained(folder, config=config)

        Args:
            depth: Blocks of the new stage.
            width: Their width, which is the new `hidden_size`.
            **fields: Other fields that change.

        Raises:
            FoveateError: A field has an impossible value.
        """
        values: dict[str, Any] = self.to_diff_dict()
        values |= {"depths": [*self.stage_blocks, depth], "hidden_sizes": [*self.hidden_sizes, width]}
        values |= {"hidden_size": None, "num_hidden_layers": None, "drop_last_block": False}
        return type(self)(**values | fields)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, of this encoder or of a ConvNeXt of `transformers`."""
        fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (_of_convnext(fields) if fields.get("model_type") == RELEASED_MODEL_TYPE else fields), unused

    @classmethod
    def released_fields(cls, config: Mapping[str, Any], tower: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """See `EncoderConfig.released_fields`.

        The authors' code acts on three fields: with `mm_vision_select_layer` -2 it removes the last block of the last
        stage, and then adds a stage where `vision_add_five_stage` says how many blocks it has. It always reads the
        last map.
        """
        name = _RELEASED_TOWER.fullmatch(str(config.get("mm_vision_tower")))
        if tower is None and name is not None:
            tower = {"image_size": int(name[1])}
        elif tower is None or tower.get("model_type") != RELEASED_MODEL_TYPE:
            return None
        fields = _of_convnext(tower)
        fields["drop_last_block"] = config.get("mm_vision_select_layer") == -2
        if (side := config.get("mm_vision_resolution") or 0) > 256:
            fields["image_size"] = side
        vision = cls(**fields)
        if depth := config.get("vision_add_five_stage"):
            vision = vision.with_stage(depth, config.get("vision_five_stage_width", 1536))
        return vision.to_dict()


def _of_convnext(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of this encoder from those of a `ConvNextConfig`."""
    return {name: fields[name] for name in _SHARED if name in fields} | {"model_type": ConvLLaVAConfig.model_type}
