"""Registry of video connectors by name.

The connectors of this library are the modules of this package. Other packages add theirs with
`register_video_connector` in a module that is imported before a model is built; `foveate --import` and
`FOVEATE_IMPORT` name such modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from foveate.core.class_registry import NamedClasses
from foveate.core.registry import import_named
from foveate.models.video_connectors.connector import VideoConnector

PACKAGE = "foveate.models.video_connectors"

C = TypeVar("C", bound=type[VideoConnector])

_connectors: NamedClasses[type[VideoConnector]] = NamedClasses("video connector", PACKAGE, VideoConnector)


def all_video_connectors() -> dict[str, type[VideoConnector]]:
    """Every video connector by name, in alphabetical order."""
    import_named()
    return _connectors.all()


def video_connector_named(name: str) -> type[VideoConnector]:
    """The video connector of a `connector_type`.

    Raises:
        FoveateError: There is none; the message names those that exist.
    """
    import_named()
    return _connectors.named(name)


def register_video_connector(cls: C) -> C:
    """Make a video connector known by its name. Also a class decorator; registering a class again replaces it.

    Raises:
        FoveateError: It is no video connector, lacks a part, or its name is taken.
    """
    _connectors.add(cls)
    return cls


def unregister_video_connector(name: str) -> None:
    """Remove a video connector that `register_video_connector` added.

    Raises:
        FoveateError: There is no such connector.
    """
    _connectors.remove(name)


def build_video_connector(
    connector_type: str, vision_hidden_size: int, text_hidden_size: int, **options: Any
) -> VideoConnector:
    """Create a video connector by name.

    Raises:
        FoveateError: There is no such connector or option, or the option has an impossible value.
    """
    return video_connector_named(connector_type)(vision_hidden_size, text_hidden_size, **options)


def video_connector_of_sizes(connector_type: str, options: Mapping[str, Any] | None = None) -> VideoConnector:
    """A video connector without weights, for processors: its shapes follow from sizes alone.

    Raises:
        FoveateError: As `build_video_connector` raises it.
    """
    return video_connector_named(connector_type).without_weights(**dict(options or {}))
