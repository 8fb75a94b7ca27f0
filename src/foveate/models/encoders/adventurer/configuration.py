"""Configuration of Adventurer."""

from __future__ import annotations

from typing import Any, Self

from foveate.core.errors import FoveateError
from foveate.models.encoders.adventurer.scan import SCANS
from foveate.models.encoders.configuration import EncoderConfig

#: Width of the paper's sizes, which all have twelve blocks.
SIZES = {"tiny": 256, "small": 512, "base": 768}
#: Which blocks read the patches in reverse.
FLIPS = ("pairs", "released")


class AdventurerConfig(EncoderConfig):
    """Configuration of an [`AdventurerModel`]; the defaults are Adventurer-Base, and `of_size` gives the other sizes.

    Takes what [`EncoderConfig`] takes, and in addition:

    Args:
        state_size (`int`): Channels S of the state of a head, for every channel of the head.
        head_dim (`int`): Channels P of a head; they divide `expand` * `hidden_size`.
        expand (`int`): Width of the mixer over the width of the tokens.
        conv_kernel (`int`): Tokens that the causal convolution of the mixer reads.
        mlp_ratio (`float`): Hidden width of the SwiGLU over the width of the tokens.
        flip (`str`): Blocks that read the patches in reverse: `"pairs"`, every other pair (2, 3, 6, 7, 10, 11 of
            twelve), or `"released"`, only blocks 2 and 3, as the authors' code and weights have it.
        scan (`str`): What computes the scan: `"torch"`, on any device, or `"mamba_ssm"`, the kernel of that package on
            a GPU.
        chunk_size (`int`): Tokens that a scan handles by one matrix product; the result does not depend on it.
        num_labels (`int`): Classes of [`AdventurerForImageClassification`].
        norm_eps (`float`): Of the RMS norms.
    """

    model_type = "adventurer"

    state_size: int = 64
    head_dim: int = 64
    expand: int = 2
    conv_kernel: int = 4
    mlp_ratio: float = 2.5
    flip: str = "pairs"
    scan: str = "torch"
    chunk_size: int = 128
    norm_eps: float = 1e-5

    @classmethod
    def of_size(cls, size: str, **fields: Any) -> Self:
        """The configuration of a size of the paper: "tiny", "small" or "base".

        Args:
            size: The size.
            **fields: Other fields, such as `patch_size=1`.

        Raises:
            FoveateError: There is no such size, or a field has an impossible value.
        """
        if size not in SIZES:
            raise FoveateError(f"there is no Adventurer of size {size!r}; possible are {', '.join(SIZES)}.")
        values: dict[str, Any] = {"hidden_size": SIZES[size]}
        return cls(**values | fields)

    def check(self) -> None:
        """See `EncoderConfig.check`."""
        for name in ("state_size", "head_dim", "expand", "conv_kernel", "chunk_size"):
            self.positive(name)
        if self.inner_size % self.head_dim:
            raise FoveateError(
                f"heads of {self.head_dim} channels do not divide the {self.inner_size} channels of adventurer's mixer."
            )
        if self.intermediate_size < 1:
            raise FoveateError(f"mlp_ratio of adventurer must give at least one hidden channel, not {self.mlp_ratio}.")
        for name, possible in (("flip", FLIPS), ("scan", tuple(SCANS))):
            value = getattr(self, name)
            if value not in possible:
                raise FoveateError(f"{name} of adventurer must be {' or '.join(possible)}, not {value!r}.")

    @property
    def inner_size(self) -> int:
        """Channels of the mixer."""
        return self.expand * self.hidden_size

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the SwiGLU."""
        return int(self.mlp_ratio * self.hidden_size)

    def flipped(self, block: int) -> bool:
        """Whether a block, counted from 0, reads the patches in reverse."""
        return block // 2 == 1 if self.flip == "released" else block // 2 % 2 == 1
