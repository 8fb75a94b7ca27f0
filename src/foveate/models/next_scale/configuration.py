"""Configuration of the next-scale model."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from foveate.core.errors import FoveateError


@strict
class NextScaleConfig(PreTrainedConfig):
    r"""Configuration of a [`NextScaleForImageGeneration`], after VAR (Tian et al., NeurIPS 2024, arXiv 2404.02905).

    The defaults are a model that a CPU trains in minutes: pictures of 32 x 32 pixels, 155 tokens.

    Args:
        image_size (`int`): Side of a picture in pixels.
        downsampling (`int`): Pixels on the side of one cell of the tokenizer's finest map; a power of two.
        scales (`list[int]`): Sides of the token maps, from coarse to fine; the last is image_size / downsampling.
        codebook_size (`int`): Number of codes V, shared by all maps.
        code_size (`int`): Channels C of a code.
        tokenizer_width (`int`): Channels of the tokenizer's first layer; deeper ones have twice as many.
        hidden_size (`int`): Width D of the transformer.
        num_hidden_layers (`int`): Its blocks.
        num_attention_heads (`int`): Heads of every block.
        mlp_ratio (`int`): Width of an MLP over D.
        num_classes (`int`): Classes; one more embedding stands for "no class" (classifier-free guidance).
        class_names (`list[str]`, *optional*): A name for every class.
        layer_norm_eps (`float`): Epsilon of the norms.
        initializer_range (`float`): Standard deviation of the initial weights.
    """

    model_type = "next_scale"

    image_size: int = 32
    downsampling: int = 4
    scales: list[int] | tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    codebook_size: int = 64
    code_size: int = 8
    tokenizer_width: int = 24
    hidden_size: int = 64
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    mlp_ratio: int = 4
    num_classes: int = 16
    class_names: list[str] | tuple[str, ...] | None = None
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.scales = list(self.scales)
        super().__post_init__(**kwargs)
        for name in (
            "image_size",
            "codebook_size",
            "code_size",
            "tokenizer_width",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "mlp_ratio",
            "num_classes",
        ):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} is {getattr(self, name)}; the least is 1.")
        if self.downsampling < 1 or self.downsampling & (self.downsampling - 1):
            raise FoveateError(f"downsampling is {self.downsampling}; it must be a power of two: 1, 2, 4, 8.")
        if self.image_size % self.downsampling:
            raise FoveateError(f"image_size {self.image_size} is no multiple of downsampling {self.downsampling}.")
        finest = self.image_size // self.downsampling
        rising = all(small < large for small, large in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or self.scales[0] < 1 or not rising or self.scales[-1] != finest:
            raise FoveateError(
                f"scales {self.scales} must rise from 1 or more to {finest}, the side of the finest map."
            )
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads.")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise FoveateError(f"there are {len(self.class_names)} class_names for {self.num_classes} classes.")

    @property
    def tokens(self) -> int:
        """Tokens of all maps."""
        return sum(side * side for side in self.scales)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of every map in the sequence of all tokens."""
        bounds, start = [], 0
        for side in self.scales:
            bounds.append((start, start + side * side))
            start += side * side
        return bounds
