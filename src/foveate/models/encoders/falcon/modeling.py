"""FALCON's encoder: crops of an image in, a few registers of every crop out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput, SelfInitialized
from foveate.models.encoders.falcon.configuration import FalconVisionConfig
from foveate.models.encoders.layers import MLP, Attention, LearnedTokens, Positions, flatten

ACTIVATIONS = {"siglip": "gelu_pytorch_tanh", "clip": "quick_gelu"}


@dataclass
class FalconVisionOutput(EncoderOutput):
    """Output of a [`FalconVisionModel`].

    Args:
        patch_tokens: On request, `(B, N, D)`: the tokens of the patches of every crop, after [CLS] where there is one.
    """

    patch_tokens: Tensor | None = None


class FalconVisionModel(Encoder):
    """SigLIP or CLIP with registers that take in what a crop shows and exchange it with the other crops of its image.

        X = [patches, R + (E_row + E_column) / 2]         every crop; R (M, D) are the registers
        every block:
        H = attention(LN X)
        H_R = H_R + ReAtten(H_R of all crops of the image)
        X = X + H;  X = X + MLP(LN X)

    FALCON: Resolving Visual Redundancy and Fragmentation in High-resolution Multimodal Large Language Models via Visual
    Registers (Zhang et al., arXiv 2501.16297, ICCV 2025). The last hidden state holds the M registers of every crop
    alone: with 64 of them, 576 patches become 9 times fewer tokens (ReCompact). ReAtten (`re_attention`) is a second
    attention in every block. It reads the output of the block's attention as it is, without a layer norm, is added to
    it before the residual, and starts from the weights of the block's attention.

    Every item of a batch is one crop. `crops_per_image` says how many crops in a row belong to an image, and
    `crop_positions` where they are; `foveate.models.encoders.falcon.crops` computes both. Without them every item shows
    a whole image. Registers and crop positions start as unit normals, as in the authors' code. Positions of patches are
    resized bilinearly for crops of another size.

    Images with equal numbers of crops are attended to together, so that attention needs no padding and no mask.
    """

    config_class = FalconVisionConfig
    _no_split_modules = ["FalconVisionBlock"]
    title: ClassVar[str] = (
        "FALCON: Resolving Visual Redundancy and Fragmentation in High-resolution Multimodal Large Language Models via "
        "Visual Registers"
    )
    paper: ClassVar[str] = "arXiv 2501.16297"

    def __init__(self, config: FalconVisionConfig) -> None:
        super().__init__(config)
        width, patch, eps = config.hidden_size, config.patch_size, config.layer_norm_eps
        side, clip = config.image_size // patch, config.geometry == "clip"
        self.patches = nn.Conv2d(config.num_channels, width, patch, patch, bias=not clip)
        self.cls_token = LearnedTokens(1, width) if clip else None
        self.positions = Positions(Grid(side, side), width)
        self.registers = LearnedTokens(config.num_registers, width, std=1.0)
        self.crop_positions = CropPositions(config.max_crops + 1, width)
        self.pre_norm = nn.LayerNorm(width, eps=eps) if clip else nn.Identity()
        self.blocks = nn.ModuleList(FalconVisionBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Identity() if clip else nn.LayerNorm(width, eps=eps)
        self.post_init()

    def encode(
        self,
        pixel_values: Tensor,
        grid: Grid,
        hidden_states: list[Tensor] | None,
        crop_positions: Tensor | None = None,
        crops_per_image: Sequence[int] | None = None,
        output_patches: bool = False,
    ) -> FalconVisionOutput:
        """See `Encoder.encode`; the hidden states are those of the registers.

        Args:
            crop_positions: `(B, 2)`, row and column of every crop; None: all show a whole image.
            crops_per_image: Crops of each image, in the order of the batch; None: 1 each.
            output_patches: Return `patch_tokens`.

        Raises:
            FoveateError: Positions or numbers of crops do not fit the batch.
        """
        batch, count = len(pixel_values), self.config.num_registers
        if crop_positions is None:
            crop_positions = torch.full((batch, 2), self.config.max_crops, device=pixel_values.device)
        else:
            check_crop_positions(crop_positions, batch, self.config.max_crops)
            crop_positions = crop_positions.to(pixel_values.device)
        groups = crop_groups([1] * batch if crops_per_image is None else crops_per_image, batch, pixel_values.device)
        raster = self.patches(pixel_values)
        tokens = [flatten(raster + self.positions(Grid(*raster.shape[-2:])))]
        if self.cls_token is not None:
            tokens = [self.cls_token(batch), *tokens]
        x = torch.cat([*tokens, self.registers(batch) + self.crop_positions(crop_positions)], dim=1)
        x = self.pre_norm(x)
        for block in self.blocks:
            if hidden_states is not None:
                hidden_states.append(x[:, -count:])
            x = block(x, groups)
        if hidden_states is not None:
            hidden_states.append(x[:, -count:])
        x = self.norm(x)
        return FalconVisionOutput(
            last_hidden_state=x[:, -count:], patch_tokens=x[:, :-count] if output_patches else None
        )


def check_crop_positions(positions: Tensor, batch: int, last: int) -> None:
    """Refuse positions that are not those of a batch of crops.

    Raises:
        FoveateError: They are not.
    """
    if positions.shape != (batch, 2) or not bool(((positions >= 0) & (positions <= last)).all()):
        raise FoveateError(
            f"crop_positions of falcon_vision must be a row and a column from 0 to {last} for each of the {batch} "
            "crops."
        )


@dataclass(frozen=True)
class CropGroups:
    """Crops by the number of crops that their image has.

    Args:
        members: For every such number n the crops of its images, `(images, n)`.
        order: `(B,)`, where each crop is in the concatenation of the members.
    """

    members: tuple[Tensor, ...]
    order: Tensor


def crop_groups(crops_per_image: Sequence[int], batch: int, device: torch.device) -> CropGroups:
    """Group the crops of a batch.

    Raises:
        FoveateError: The numbers are not those of the batch.
    """
    counts = torch.as_tensor(crops_per_image, dtype=torch.long)
    if counts.ndim != 1 or int(counts.sum()) != batch or bool((counts < 1).any()):
        raise FoveateError(
            f"crops_per_image of falcon_vision must be numbers from 1 on whose sum is {batch}, the crops of the batch, "
            f"not {counts.tolist()}."
        )
    first = counts.cumsum(0) - counts
    members = tuple(first[counts == n, None] + torch.arange(int(n)) for n in counts.unique())
    order = torch.cat([part.flatten() for part in members]).argsort()
    return CropGroups(tuple(part.to(device) for part in members), order.to(device))


class CropPositions(SelfInitialized):
    """Learned positions of crops: the mean of an entry for the row and one for the column.

    Args:
        count: Entries of each table.
        width: Width D of the tokens.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(count, width))
        self.columns = nn.Parameter(torch.zeros(count, width))

    def reset_parameters(self, std: float) -> None:
        """See `SelfInitialized.reset_parameters`."""
        init.normal_(self.rows)
        init.normal_(self.columns)

    def forward(self, positions: Tensor) -> Tensor:
        """Map rows and columns `(B, 2)` to `(B, 1, D)`."""
        return ((self.rows[positions[:, 0]] + self.columns[positions[:, 1]]) / 2)[:, None]


class FalconVisionBlock(GradientCheckpointingLayer, SelfInitialized):
    """A pre-norm transformer block with an attention of registers across crops.

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: FalconVisionConfig) -> None:
        super().__init__()
        width, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        self.num_registers = config.num_registers
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config, width, heads)
        self.re_attention = Attention(config, width, heads) if config.re_attention else None
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.intermediate_size, ACTIVATIONS[config.geometry])

    def reset_parameters(self, std: float) -> None:
        """Start ReAtten from the weights of the block's attention; see `SelfInitialized.reset_parameters`."""
        if self.re_attention is not None:
            source = dict(self.attention.named_parameters())
            for name, parameter in self.re_attention.named_parameters():
                init.copy_(parameter, source[name])

    def forward(self, x: Tensor, groups: CropGroups) -> Tensor:
        """Map tokens `(B, N + M, D)`, the M registers last, to tokens of the same shape."""
        mixed = self.attention(self.norm1(x))
        if self.re_attention is not None:
            registers = mixed[:, -self.num_registers :]
            exchanged = torch.cat([self._exchange(registers, part) for part in groups.members])[groups.order]
            mixed = torch.cat([mixed[:, : -self.num_registers], registers + exchanged], dim=1)
        x = x + mixed
        return x + self.mlp(self.norm2(x))

    def _exchange(self, registers: Tensor, members: Tensor) -> Tensor:
        """What registers of crops, `(images, n)` of `(B, M, D)`, read of the others of their image, `(crops, M, D)`."""
        assert self.re_attention is not None
        together = registers[members].flatten(1, 2)
        return self.re_attention(together).unflatten(1, (members.shape[1], -1)).flatten(0, 1)
