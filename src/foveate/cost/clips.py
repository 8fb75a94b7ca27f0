"""FLOPs and KV cache of one clip and one prompt, in models with a video connector of foveate."""

from __future__ import annotations

from typing import Any

import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import encoder_grid
from foveate.cost import flops
from foveate.cost.cost import Convention, Cost, cost, encoder
from foveate.cost.counted import CountedEncoder, count, empty, without_data
from foveate.cost.preprocessing import ProcessedImage
from foveate.cost.schedule import Run
from foveate.cost.shapes import Model, llava_vision, shape_of
from foveate.models.encoders import EncoderConfig, encoder_named
from foveate.models.video_connectors import (
    Instruction,
    VideoConnector,
    build_video_connector,
    video_connector_of_sizes,
)


def clip_tokens(config: Any, frames: int, height: int, width: int) -> int:
    """Tokens of a clip after the video connector of a `FoveateLlavaVideoConfig`; the most, where these depend on it.

    Args:
        config: The configuration.
        frames: Of the clip.
        height: Of a frame in pixels, as the encoder reads it.
        width: Likewise.
    """
    connector = video_connector_of_sizes(config.connector_type, config.connector_options)
    return connector.output_shape(frames, encoder_grid(config.vision_config, height, width)).size


def clip_cost(
    config: Any,
    frames: int,
    height: int,
    width: int,
    text: int,
    convention: Convention | None = None,
    *,
    words: int = 64,
) -> Cost:
    """Compute the cost of one clip with `text` tokens around it.

    Encoder and connector of foveate are counted while they run on tensors without data; CLIP, SigLIP and the language
    model have closed forms.

    Args:
        config: A `FoveateLlavaVideoConfig`.
        frames: Of the clip.
        height: Of a frame in pixels, as the encoder reads it.
        width: Likewise.
        text: Tokens of the prompt that are not the clip's.
        convention: What is counted.
        words: Of the instruction, for connectors that read it through a text encoder; SigLIP pads its texts to 64.

    Raises:
        FoveateError: The number of tokens or the operations of the connector depend on the clip, or the encoder or the
            language model has no formula.
    """
    convention = convention or Convention()
    connector = video_connector_of_sizes(config.connector_type, config.connector_options)
    if not connector.static_count:
        raise FoveateError(f"the number of tokens of the connector {connector.name} depends on the clip.")
    if convention.connector and not connector.static_cost:
        raise FoveateError(
            f"what the connector {connector.name} computes depends on the clip; count the model without it "
            "(Convention(connector=False))."
        )
    tokens = clip_tokens(config, frames, height, width)
    model = Model(config.model_type, shape_of(config).text)
    run = Run(ProcessedImage((), tokens), (), (tokens,) * model.text.layers)
    language = cost(model, run, text, convention)
    attention = convention.attention != "none"
    before = {
        "encoder": _encoder(config, frames, height, width, attention) if convention.encoder else 0,
        "connector": _connector(config, frames, height, width, words, attention) if convention.connector else 0,
    }
    if connector.reads_states and convention.connector:
        before["text encoder"] = _text_encoder(config.instruction_config, words, attention)
    if connector.reads_joint_space and convention.connector:  # the MLP of SigLIP's head, on every patch
        vision, patches = config.vision_config, frames * encoder_grid(config.vision_config, height, width).size
        wide = vision.hidden_size
        before["joint space"] = flops.connector(patches, wide, vision.intermediate_size, wide)
    readers, decode = _readers(config, connector, frames, height, width, text, attention)
    parts = language.parts | before | ({"readers of the clip": readers} if readers else {})
    return Cost(parts, language.decode + decode, language.cached, language.cached_image)


def _readers(
    config: Any, connector: VideoConnector, frames: int, height: int, width: int, text: int, attention: bool
) -> tuple[int, int]:
    """FLOPs of decoder layers that read the memory of a clip, for the prompt and for the next token."""
    layers = connector.decoder_layers(config.text_config.num_hidden_layers)
    if not layers:
        return 0, 0
    grid = encoder_grid(config.vision_config, height, width)
    reader: Any = without_data(lambda: connector.build_reader(config.text_config))
    memory, visual = connector.memory_size(frames, grid), connector.output_shape(frames, grid).size
    prompt = reader.flops(memory, text, visual, attention)
    step = reader.flops(memory, 1, 0, attention) - reader.flops(memory, 0, 0, attention)
    return len(layers) * prompt, len(layers) * step


def _encoder(config: Any, frames: int, height: int, width: int, attention: bool) -> int:
    vision = config.vision_config
    if not isinstance(vision, EncoderConfig):
        return frames * encoder(llava_vision(config), encoder_grid(vision, height, width), attention=attention)
    if not vision.clip_options:
        return frames * CountedEncoder(vision).flops(encoder_grid(vision, height, width), attention=attention)
    module = without_data(lambda: encoder_named(vision.model_type)(vision))
    pixels = empty(frames, vision.num_channels, height, width)
    return count(lambda: module(pixels, frame_counts=[frames], **vision.tower_options()), attention)


def _text_encoder(config: Any, words: int, attention: bool) -> int:
    from foveate.models.llava_video.modeling import TEXT_ENCODERS, word_states

    if config is None:
        raise FoveateError("the connector reads states of a text encoder, and the model has no instruction_config.")
    module = without_data(lambda: TEXT_ENCODERS[config.model_type](config))
    return count(lambda: word_states(module, torch.zeros(words, dtype=torch.int64, device="meta")), attention)


def _connector(config: Any, frames: int, height: int, width: int, words: int, attention: bool) -> int:
    layer, vision = config.vision_feature_layer, config.vision_config
    inputs = vision.hidden_size * (1 if isinstance(layer, int) else len(layer))
    options = dict(config.connector_options or {})

    def build() -> VideoConnector:
        return build_video_connector(config.connector_type, inputs, config.text_config.hidden_size, **options)

    module: Any = without_data(build)
    grid = encoder_grid(vision, height, width)
    spaces = (2,) if module.reads_joint_space else ()
    text = None
    if module.reads_states:
        text = Instruction(empty(1), empty(words, inputs), empty(inputs))
    return count(lambda: module(empty(frames, grid.size, *spaces, inputs), grid, text=text), attention)
