"""Model dimensions that determine cost, read from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.cost.counted import CountedConnector, CountedEncoder
from foveate.models.encoders import EncoderConfig

#: Text models whose MLP has two matrices; all others that are met here have a gate too.
PLAIN_MLP = ("falcon", "gpt2", "gpt_neox", "opt", "phi", "starcoder2")

#: Layers that are counted, those with windows as if they attended to all: prompts are shorter than the windows.
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Vision:
    """Dimensions of a vision transformer.

    Args:
        width: Of a token.
        hidden: Of the MLP.
        blocks: How many run.
        patch_values: Numbers in one patch, all channels and frames.
        gated: Whether the MLP has three matrices.
        cls: Tokens of a sequence that are no patches.
        output: The 0-based block whose output is read; blocks after it run all the same.
        window: Side in patches of the windows of attention; None: every block attends to all.
        full: 0-based blocks that attend to all although there are windows.
        stages: Blocks after which every 2 x 2 tokens become one, each with its kind ("content-adaptive", "average",
            "early").
        table: Rows and columns of learned positions that two matrix products bring to the size of the image.
        pooled: Whether a head pools the tokens by attention (SigLIP), though nothing reads its output here.
    """

    width: int
    hidden: int
    blocks: int
    patch_values: int
    gated: bool = False
    cls: int = 0
    output: int = -1
    window: int | None = None
    full: tuple[int, ...] = ()
    stages: tuple[tuple[int, str], ...] = ()
    table: tuple[int, int] | None = None
    pooled: bool = False

    def output_grid(self, patches: Grid) -> Grid:
        """Rows and columns of the tokens that leave the encoder."""
        side = 2 ** len(self.stages)
        return Grid(patches.rows // side, patches.columns // side)


@dataclass(frozen=True)
class Connector:
    """Two-layer connector that maps `merge` encoder tokens to one token of the language model.

    Args:
        merge: Encoder tokens that are joined.
        inputs: Width of what is joined.
        hidden: Width between the layers.
        outputs: Width of the language model.
        copies: How many such connectors read the encoder (DeepStack has more than one).
    """

    merge: int
    inputs: int
    hidden: int
    outputs: int
    copies: int = 1


@dataclass(frozen=True)
class Text:
    """Dimensions of a decoder.

    Args:
        width: Of a token.
        hidden: Of the MLP.
        layers: How many.
        heads: Of queries.
        kv_heads: Of keys and values.
        head: Width of a head.
        vocabulary: Rows of the output layer.
        gated: Whether the MLP has three matrices.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    gated: bool = True


@dataclass(frozen=True)
class Model:
    """Dimensions of a vision-language model.

    Args:
        kind: `model_type` of its configuration.
        text: Its decoder.
        vision: Its encoder; None where foveate cannot count it.
        connector: Connector; None without encoder.
        reads_through_voco: Whether image tokens leave the cache after the prompt, because text reads VoCo tokens, which
            are counted as text.
        remembering_layers: Decoder layers before which visual tokens attend to the encoder again (Vision Remember).
    """

    kind: str
    text: Text
    vision: Vision | CountedEncoder | None = None
    connector: Connector | CountedConnector | None = None
    reads_through_voco: bool = False
    remembering_layers: int = 0


def shape_of(config: Any) -> Model:
    """Read the dimensions of a model from its `transformers` configuration.

    An encoder of a family that is not known here is omitted, so that only the language model can be counted.

    Raises:
        FoveateError: the decoder is not one whose every layer attends and has one MLP.
    """
    text = _text(config.get_text_config())
    read = _ENCODERS.get(config.model_type)
    vision, connector = read(config, text) if read else (None, None)
    return Model(
        config.model_type,
        text,
        vision,
        connector,
        reads_through_voco=bool(getattr(config, "num_voco_tokens", 0)),
        remembering_layers=len(getattr(config, "vision_remember_layers", None) or ()),
    )


def families() -> tuple[str, ...]:
    """List the model types whose encoder is counted."""
    return tuple(sorted(_ENCODERS))


def _text(config: Any) -> Text:
    kind = config.model_type
    experts = next((n for n in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(config, n, 0)), None)
    linear = {layer for layer in getattr(config, "layer_types", None) or () if layer not in ATTENTION}
    if experts or linear:
        what = "experts" if experts else ", ".join(sorted(linear))
        raise FoveateError(f"the decoder {kind!r} has {what}; counted are decoders with attention and one MLP a layer.")
    return Text(
        width=config.hidden_size,
        hidden=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        gated=kind not in PLAIN_MLP,
    )


def _llava(config: Any, text: Text) -> tuple[Vision, Connector]:
    """LLaVA, LLaVA-NeXT, LLaVA-OneVision: CLIP or SigLIP with a two-layer connector on every patch."""
    layer = config.vision_feature_layer
    count = len(layer) if isinstance(layer, (list, tuple)) else 1
    return llava_vision(config), Connector(1, config.vision_config.hidden_size * count, text.width, text.width)


def llava_vision(config: Any) -> Vision:
    """The CLIP or SigLIP of a LLaVA-like configuration.

    Raises:
        FoveateError: The encoder is another one.
    """
    vision = config.vision_config
    if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise FoveateError(
            f"the encoder {vision.model_type!r} in a {config.model_type!r} model has no formula here; CLIP and SigLIP "
            "have. Give --tokens to count the language model alone."
        )
    layers = config.vision_feature_layer
    layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    blocks = vision.num_hidden_layers
    read = [layer if layer >= 0 else blocks + 1 + layer for layer in layers]  # 0 is the embedding
    return Vision(
        width=vision.hidden_size,
        hidden=vision.intermediate_size,
        blocks=blocks,
        patch_values=vision.num_channels * vision.patch_size**2,
        cls=int(vision.model_type == "clip_vision_model"),
        output=max(read) - 1,
        pooled=vision.model_type == "siglip_vision_model" and getattr(vision, "vision_use_head", True),
    )


def _foveate_llava(config: Any, text: Text) -> tuple[Vision | CountedEncoder, CountedConnector]:
    """LLaVA with any connector on CLIP, SigLIP or an encoder of foveate."""
    vision = config.vision_config
    tower = CountedEncoder(vision) if isinstance(vision, EncoderConfig) else _llava(config, text)[0]
    layer = config.vision_feature_layer
    return tower, CountedConnector(config, vision.hidden_size * (1 if isinstance(layer, int) else len(layer)))


def _qwen2(config: Any, text: Text) -> tuple[Vision, Connector]:
    vision = config.vision_config
    wide = vision.embed_dim * vision.spatial_merge_size**2
    shape = Vision(
        width=vision.embed_dim,
        hidden=int(vision.embed_dim * vision.mlp_ratio),
        blocks=vision.depth,
        patch_values=_clip_values(vision),
    )
    return shape, Connector(vision.spatial_merge_size**2, wide, wide, text.width)


def _qwen25(config: Any, text: Text) -> tuple[Vision, Connector]:
    vision = config.vision_config
    wide = vision.hidden_size * vision.spatial_merge_size**2
    unit = vision.spatial_merge_size * vision.patch_size
    shape = Vision(
        width=vision.hidden_size,
        hidden=vision.intermediate_size,
        blocks=vision.depth,
        patch_values=_clip_values(vision),
        gated=True,
        window=vision.window_size // unit * vision.spatial_merge_size,
        full=tuple(vision.fullatt_block_indexes),
    )
    return shape, Connector(vision.spatial_merge_size**2, wide, wide, text.width)


def _qwen3(config: Any, text: Text) -> tuple[Vision, Connector]:
    vision = config.vision_config
    wide = vision.hidden_size * vision.spatial_merge_size**2
    shape = Vision(
        width=vision.hidden_size,
        hidden=vision.intermediate_size,
        blocks=vision.depth,
        patch_values=_clip_values(vision),
    )
    copies = 1 + len(vision.deepstack_visual_indexes)
    return shape, Connector(vision.spatial_merge_size**2, wide, wide, text.width, copies)


def _clip_values(vision: Any) -> int:
    """Values per patch in Qwen's encoders: two frames, since an image is repeated as a pair."""
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


def _internvl(config: Any, text: Text) -> tuple[Vision, Connector]:
    vision = config.vision_config
    merge = round(1 / config.downsample_ratio) ** 2
    rows, columns = _pair(vision.patch_size)
    shape = Vision(
        width=vision.hidden_size,
        hidden=vision.intermediate_size,
        blocks=vision.num_hidden_layers,
        patch_values=vision.num_channels * rows * columns,
        cls=1,
    )
    return shape, Connector(merge, merge * vision.hidden_size, text.width, text.width)


def _uhd(config: Any, text: Text) -> tuple[Vision | CountedEncoder, Connector | CountedConnector]:
    vision = config.vision_config
    if isinstance(vision, EncoderConfig):
        return CountedEncoder(vision), CountedConnector(config, vision.hidden_size)
    learned = vision.position_embedding != "none"
    shape = Vision(
        width=vision.hidden_size,
        hidden=vision.intermediate_size,
        blocks=vision.num_hidden_layers,
        patch_values=vision.num_channels * vision.patch_size**2,
        gated=vision.mlp_type == "gated",
        window=vision.window_size,
        full=tuple(vision.full_attention_layers),
        stages=tuple(zip(vision.merger_layer_index, vision.stage_methods, strict=True)),
        table=(vision.init_pos_emb_height, vision.init_pos_emb_width) if learned else None,
    )
    if config.connector_type != "mlp":
        return shape, CountedConnector(config, vision.hidden_size)
    return shape, Connector(1, vision.hidden_size, text.width, text.width)


def _minicpm(config: Any, text: Text) -> tuple[Vision, Connector]:
    """LLaVA-UHD v4's encoder: one early compressor, and a connector that merges 2 x 2 once more."""
    vision = config.vision_config
    if config.merger_times != 1 or config.downsample_mode != "16x":
        raise FoveateError("of 'minicpmv4_6' models those with one merger and 16-fold compression are counted.")
    rows, columns = _pair(vision.patch_size)
    shape = Vision(
        width=vision.hidden_size,
        hidden=vision.intermediate_size,
        blocks=vision.num_hidden_layers - bool(config.drop_vision_last_layer),
        patch_values=vision.num_channels * rows * columns,
        stages=((config.insert_layer_id, "early"),),
    )
    wide = 4 * vision.hidden_size
    return shape, Connector(4, wide, wide, text.width)


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


_ENCODERS: dict[str, Callable[[Any, Text], tuple[Vision | CountedEncoder, Connector | CountedConnector]]] = {
    "foveate_llava": _foveate_llava,
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava,
    "llava_onevision": _llava,
    "llava_uhd": _uhd,
    "minicpmv4_6": _minicpm,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen25,
    "qwen3_vl": _qwen3,
}
