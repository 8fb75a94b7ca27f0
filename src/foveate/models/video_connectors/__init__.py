"""Trainable connectors between the frames of a clip and a language model."""

from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.registry import (
    all_video_connectors,
    build_video_connector,
    register_video_connector,
    unregister_video_connector,
    video_connector_named,
    video_connector_of_sizes,
)

__all__ = [
    "ClipShape",
    "ConnectorOptions",
    "Instruction",
    "VideoConnector",
    "all_video_connectors",
    "build_video_connector",
    "register_video_connector",
    "unregister_video_connector",
    "video_connector_named",
    "video_connector_of_sizes",
]
