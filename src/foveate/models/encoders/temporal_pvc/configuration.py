"""Configuration of the encoder of PVC."""

from __future__ import annotations

from typing import ClassVar

from transformers.activations import ACT2FN

from foveate.core.errors import FoveateError
from foveate.models.encoders.configuration import EncoderConfig


class TemporalPVCConfig(EncoderConfig):
    """Configuration of a [`TemporalPVCModel`]; the defaults are InternViT-300M at 448 pixels.

    Takes what [`EncoderConfig`] takes, and in addition:

    Args:
        num_attention_heads (`int`): Heads of both attentions; they divide the width.
        intermediate_size (`int`): Hidden width of the MLP.
        temporal_layers (`int`): Last blocks that attend over frames and are conditioned on time. The paper does not
            say how many.
        time_scale (`float`): The time of the last frame of a clip; that of the first is 0.
        layer_scale_init_value (`float`): First value of the factors of attention and MLP.
        zero_init (`bool`): Whether the conditioning on time and the output of the attention over frames begin at
            zero, so that a new encoder is the vision transformer that it is made of.
        layer_norm_eps (`float`): Of the layer norms.
        cls_token (`bool`): Whether there is a [CLS] token, as in InternViT; SigLIP has none.
        final_norm (`bool`): Whether a layer norm follows the last block, as in SigLIP.
        hidden_act (`str`): Activation of the MLP.
    """

    model_type = "temporal_pvc"
    clip_options: ClassVar[tuple[str, ...]] = ("frame_counts", "timestamps")

    image_size: int = 448
    patch_size: int = 14
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    temporal_layers: int = 12
    time_scale: float = 1000.0
    layer_scale_init_value: float = 0.1
    zero_init: bool = True
    layer_norm_eps: float = 1e-6
    cls_token: bool = True
    final_norm: bool = False
    hidden_act: str = "gelu"

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        for name in ("num_attention_heads", "intermediate_size", "temporal_layers"):
            self.positive(name)
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"the {self.num_attention_heads} heads of temporal_pvc do not divide its width {self.hidden_size}."
            )
        if self.temporal_layers > self.num_hidden_layers:
            raise FoveateError(
                f"temporal_layers of temporal_pvc must be at most its {self.num_hidden_layers} blocks, not "
                f"{self.temporal_layers}."
            )
        if self.hidden_act not in ACT2FN:
            raise FoveateError(
                f"temporal_pvc has no hidden_act {self.hidden_act!r}; possible are those of transformers."
            )
        if self.time_scale <= 0:
            raise FoveateError(f"time_scale of temporal_pvc must be above 0, not {self.time_scale}.")
