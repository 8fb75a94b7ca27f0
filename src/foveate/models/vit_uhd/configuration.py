"""Configuration of ViT-UHD, a vision transformer with token compression inside."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid

MERGING_METHODS = ("content-adaptive", "average", "early")
ROPE_LAYOUTS = ("interleaved", "hierarchical", "half", "none")
POSITION_EMBEDDINGS = ("bicubic", "bilinear-antialias", "none")
NORMS = ("layer_norm", "rms_norm")
MLPS = ("plain", "gated")

# Names in the released MoonViT and LLaVA-UHD v3 configurations.
RELEASED_MODEL_TYPE = "moonvit"
_RELEASED_METHODS = {"m_pooling": "content-adaptive", "avg_pooling": "average"}


@strict
class ViTUHDConfig(PreTrainedConfig):
    r"""Configuration of a [`ViTUHDModel`].

    The defaults are the released ViT-UHD of LLaVA-UHD v3 (arXiv 2511.21150): the MoonViT-SO400M geometry
    with a refined patch of 10 px and two content-adaptive stages, so that one output token stands for
    40 x 40 px. The fields `norm_type`, `mlp_type`, `rope_layout`, `position_embedding`, `window_size` and
    `final_norm` describe the pretrained vision transformers that can be converted (`foveate.models.vit_uhd.from_vit`).

    Args:
        patch_size (`int`): Side p of a patch in pixels.
        num_channels (`int`): Channels of a patch.
        hidden_size (`int`): Width D.
        intermediate_size (`int`): Width of the MLP.
        num_hidden_layers (`int`): Number of blocks.
        num_attention_heads (`int`): Number of attention heads; D / heads must be a multiple of 4 with rotary positions.
        hidden_act (`str`): Activation of the MLP, a name of `transformers.activations.ACT2FN`.
        merger_layer_index (`list[int]`): 0-based blocks after which a stage of windowed token compression runs.
            Every stage turns each 2 x 2 window into one token.
        merging_method (`str` or `list[str]`): Kind of every stage, or one name per stage: `"content-adaptive"`
            (softmax weights per channel over the window, the published one), `"average"`, or `"early"`
            (LLaVA-UHD v4's window attention + pixel-unshuffle MLP). The released names `"m_pooling"` and
            `"avg_pooling"` are accepted.
        early_per_token_norm (`bool`): For `"early"` stages: normalise each token of a window by itself instead of
            the concatenated window (the paper's reading, the default).
        init_pos_emb_height (`int`): Rows of the learned table of absolute positions.
        init_pos_emb_width (`int`): Columns of that table.
        position_embedding (`str`): How the table is resampled to an image's grid: `"bicubic"`,
            `"bilinear-antialias"`, or `"none"` for no absolute positions.
        window_position_embedding (`bool`): Add a learned tile of 2^s x 2^s positions (s stages), repeated over the
            grid, that tells the corners of a merge window apart ("absolute win", arXiv 2311.05613). Off in the
            released models; worth having when a small model is trained from scratch.
        rope_layout (`str`): Rotary positions. `"interleaved"`: plain, x and y frequencies alternate over channel
            pairs, positions restart at unit spacing after a merge (what the released weights expect);
            `"hierarchical"`: all x then all y frequencies, a token after k merges stands at (2^k i, 2^k j);
            `"half"`: rotate-half channel order with y then x frequencies (Qwen2-VL); `"none"`.
        rope_theta (`float`): Base of the rotary frequencies.
        norm_type (`str`): `"layer_norm"` or `"rms_norm"`.
        layer_norm_eps (`float`): Its epsilon.
        final_norm (`bool`): Whether a norm follows the last block.
        mlp_type (`str`): `"plain"` (fc0, activation, fc1) or `"gated"` (fc1(activation(gate(x)) * fc0(x))).
        attention_bias (`bool`): Bias of the attention projections.
        mlp_bias (`bool`): Bias of the MLP.
        patch_bias (`bool`): Bias of the patch embedding.
        window_size (`int`, *optional*): Side, in tokens, of the windows to which attention is restricted in every
            block that is not in `full_attention_layers` (Qwen2.5-VL). `None`: full attention everywhere.
        full_attention_layers (`list[int]`): 0-based blocks with full attention when `window_size` is set.
        attention_dropout (`float`): Dropout on attention weights while training.
        initializer_range (`float`): Standard deviation of the initial weights.
    """

    model_type = "vit_uhd"

    patch_size: int = 10
    num_channels: int = 3
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    merger_layer_index: list[int] | tuple[int, ...] | None = (4, 18)
    merging_method: str | list[str] | tuple[str, ...] | None = "content-adaptive"
    early_per_token_norm: bool = False
    init_pos_emb_height: int = 64
    init_pos_emb_width: int = 64
    position_embedding: str = "bicubic"
    window_position_embedding: bool = False
    rope_layout: str = "interleaved"
    rope_theta: float | int = 10000.0
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-5
    final_norm: bool = True
    mlp_type: str = "plain"
    attention_bias: bool = True
    mlp_bias: bool = True
    patch_bias: bool = True
    window_size: int | None = None
    full_attention_layers: list[int] | tuple[int, ...] = ()
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a folder or Hub id, those of the released layout (`model_type: moonvit`) read as ours."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _read_released(fields), kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> ViTUHDConfig:
        """A configuration from its fields, ours or those of the released layout."""
        return super().from_dict(_read_released(config_dict), **kwargs)

    def __post_init__(self, **kwargs):
        layers = list(self.merger_layer_index or ())
        self.full_attention_layers = list(self.full_attention_layers)
        methods = self.merging_method or "content-adaptive"
        if isinstance(methods, str):
            self.merging_method = _RELEASED_METHODS.get(methods, methods)
        else:
            kinds = [_RELEASED_METHODS.get(method, method) for method in methods]
            if len(kinds) == len(layers):  # a kind stays with its block
                kinds = [kind for _, kind in sorted(zip(layers, kinds, strict=True))]
            self.merging_method = kinds
        self.merger_layer_index = sorted(layers)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_stages(self) -> int:
        """Number of stages s; the encoder returns 4^s times fewer tokens than it embeds."""
        return len(self.merger_layer_index or ())

    @property
    def unit(self) -> int:
        """Pixels on the side of one output token: patch_size * 2^s. Image sides must be multiples of it."""
        return self.patch_size * 2**self.num_stages

    def output_grid(self, height: int, width: int) -> Grid:
        """Rows and columns of the tokens of an image, from its size in pixels alone.

        Raises:
            FoveateError: A side is no multiple of `unit`.
        """
        if height < 1 or width < 1 or height % self.unit or width % self.unit:
            raise FoveateError(
                f"an image of {height} x {width} pixels: with {self.num_stages} stages both sides must be multiples of "
                f"{self.unit} pixels; resize the image to a multiple of the model's unit first."
            )
        return Grid(height // self.unit, width // self.unit)

    @property
    def stage_methods(self) -> list[str]:
        """Kind of each stage, in the order of `merger_layer_index`."""
        if isinstance(self.merging_method, str):
            return [self.merging_method] * self.num_stages
        return list(self.merging_method or ())

    def _check(self) -> None:
        for name, allowed in (
            ("rope_layout", ROPE_LAYOUTS),
            ("position_embedding", POSITION_EMBEDDINGS),
            ("norm_type", NORMS),
            ("mlp_type", MLPS),
        ):
            if getattr(self, name) not in allowed:
                raise FoveateError(f"{name}={getattr(self, name)!r} is not known; possible are {', '.join(allowed)}.")
        for method in self.stage_methods:
            if method not in MERGING_METHODS:
                raise FoveateError(
                    f"merging_method {method!r} is not known; possible are {', '.join(MERGING_METHODS)} "
                    f"(and the released names {', '.join(_RELEASED_METHODS)})."
                )
        if len(self.stage_methods) != self.num_stages:
            raise FoveateError(
                f"merging_method lists {len(self.stage_methods)} kinds for {self.num_stages} stages "
                f"(merger_layer_index={self.merger_layer_index}); give one name, or one per stage."
            )
        for field in ("merger_layer_index", "full_attention_layers"):
            layers = getattr(self, field)
            outside = [index for index in layers if not 0 <= index < self.num_hidden_layers]
            if outside or len(set(layers)) != len(layers):
                raise FoveateError(
                    f"{field}={layers} must name different blocks between 0 and {self.num_hidden_layers - 1}."
                )
        if self.patch_size < 1:
            raise FoveateError(f"patch_size={self.patch_size} must be at least 1 pixel.")
        if self.window_size is not None and self.window_size < 1:
            raise FoveateError(f"window_size={self.window_size} must be at least 1 token, or None.")
        if self.hidden_size % self.num_attention_heads:
            raise FoveateError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.rope_layout != "none" and (self.hidden_size // self.num_attention_heads) % 4:
            raise FoveateError(
                f"rotary positions in two dimensions need a head width that is a multiple of 4; "
                f"hidden_size={self.hidden_size} over {self.num_attention_heads} heads gives "
                f"{self.hidden_size // self.num_attention_heads}."
            )


def _read_released(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `moonvit` configuration with that class's defaults: patch 14 and, if none are named, no stages."""
    if fields.get("model_type") != RELEASED_MODEL_TYPE:
        return fields
    return {"patch_size": 14, "merger_layer_index": None, **fields, "model_type": ViTUHDConfig.model_type}


__all__ = ["RELEASED_MODEL_TYPE", "ViTUHDConfig"]
