"""A pretrained vision transformer with registers that were added afterwards."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import AutoModel

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput
from foveate.models.encoders.layers import LearnedTokens
from foveate.models.encoders.registers.configuration import RegistersConfig
from foveate.models.encoders.registers.towers import LAYOUTS, Layout, core_of


class RegistersModel(Encoder):
    """CLIP, SigLIP or DINOv2 of `transformers` with registers before its tokens.

        X = [registers, CLS, patches + positions]        registers have no positions
        X = LN(blocks(X))                                patches are the output, registers are dropped

    Vision Transformers with Self-Distilled Registers (Chen et al., arXiv 2505.21501). Pretrained transformers write
    values for the whole image into a few tokens of patches, whose norms become many times those of the others and which
    no longer describe their patch. Registers give these values another place. `foveate train-method ph-reg` adds them
    to a pretrained tower and trains them, the positions, the patch embedding and one block by self-distillation;
    `from_tower` gives the first weights.

    Registers enter before the first block, in CLIP after its first layer norm; the authors' code is for DINOv2 alone.
    The last hidden state is normalized by the tower's last layer norm for CLIP too, which `CLIPVisionModel` applies to
    [CLS] only. `prefix_tokens` holds the registers, then [CLS] where the tower has it. With 0 registers it is the plain
    tower.

    In a LLaVA of `transformers`, replace `model.model.vision_tower` by this model and set
    `vision_feature_select_strategy="full"` in its configuration, because [CLS] is not among the hidden states.
    """

    config_class = RegistersConfig
    _no_split_modules = ["CLIPEncoderLayer", "SiglipEncoderLayer", "Dinov2Layer"]
    title: ClassVar[str] = "Vision Transformers with Self-Distilled Registers"
    paper: ClassVar[str] = "arXiv 2505.21501"

    def __init__(self, config: RegistersConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.registers = LearnedTokens(config.num_registers, width, std=width**-0.5)
        self.tower: Any = AutoModel.from_config(config.vision_config)
        self.post_init()

    @classmethod
    def from_tower(cls, tower: Any, num_registers: int = 16) -> Self:
        """A tower's weights with new registers, which the random state of torch draws.

        Args:
            tower: A vision transformer of `transformers`, or a model that has one.
            num_registers: Registers; 0 gives the plain tower.

        Raises:
            FoveateError: It is no CLIP, SigLIP or DINOv2.
        """
        tower = getattr(tower, "model", tower)
        tower = core_of(getattr(tower, "vision_tower", tower))
        kind = getattr(getattr(tower, "config", None), "model_type", type(tower).__name__)
        if kind not in LAYOUTS:
            raise FoveateError(f"registers are added to one of {', '.join(LAYOUTS)}, not to {kind}.")
        model = cls(RegistersConfig(vision_config=tower.config, num_registers=num_registers))
        state, ours = tower.state_dict(), core_of(model.tower)
        ours.load_state_dict({name: state[name] for name in ours.state_dict()})
        return model.to(device=tower.device, dtype=tower.dtype).eval()

    @property
    def layout(self) -> Layout:
        """Where the parts of the tower are."""
        return LAYOUTS[self.config.vision_config.model_type]

    def encode(
        self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None, normalize: bool = True
    ) -> EncoderOutput:
        """See `Encoder.encode`.

        Args:
            normalize: Apply the last layer norm.
        """
        layout, core = self.layout, core_of(self.tower)
        x = layout.embed(core, pixel_values, self.config.image_size)
        x = torch.cat([self.registers(len(x)).to(x.dtype), x], dim=1)
        first = self.config.num_registers + layout.has_cls
        for block in core.get_submodule(layout.blocks):
            if hidden_states is not None:
                hidden_states.append(x[:, first:])
            x = block(x, None)
        if hidden_states is not None:
            hidden_states.append(x[:, first:])
        if normalize:
            x = core.get_submodule(layout.norm)(x)
        return EncoderOutput(last_hidden_state=x[:, first:], prefix_tokens=x[:, :first] if first else None)
