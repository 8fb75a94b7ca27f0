"""Registry of connectors by name, and connectors from the configuration of a model.

The connectors of this library are the modules of this package. Other packages add theirs with `register_connector` in a
module that is imported before a model is built; `foveate --import` and `FOVEATE_IMPORT` name such modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from foveate.core.class_registry import NamedClasses
from foveate.core.errors import FoveateError
from foveate.core.registry import import_named
from foveate.models.connectors.connector import Connector

PACKAGE = "foveate.models.connectors"

C = TypeVar("C", bound=type[Connector])

_connectors: NamedClasses[type[Connector]] = NamedClasses("connector", PACKAGE, Connector)


def all_connectors() -> dict[str, type[Connector]]:
    """Every connector by name, in alphabetical order."""
    import_named()
    return _connectors.all()


def connector_named(name: str) -> type[Connector]:
    """The connector of a `connector_type`.

    Raises:
        FoveateError: There is none; the message names those that exist.
    """
    import_named()
    return _connectors.named(name)


def register_connector(cls: C) -> C:
    """Make a connector known by its name. Also a class decorator; registering a class again replaces it.

    Raises:
        FoveateError: It is no connector, lacks a part, or its name is taken.
    """
    _connectors.add(cls)
    return cls


def unregister_connector(name: str) -> None:
    """Remove a connector that `register_connector` added.

    Raises:
        FoveateError: There is no such connector.
    """
    _connectors.remove(name)


def build_connector(connector_type: str, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> Connector:
    """Create a connector by name.

    Raises:
        FoveateError: There is no such connector or option, or the option has an impossible value.
    """
    return connector_named(connector_type)(vision_hidden_size, text_hidden_size, **options)


def connector_of_sizes(connector_type: str, options: Mapping[str, Any] | None = None) -> Connector:
    """A connector without weights, for processors and servers: its output grids follow from sizes alone.

    Raises:
        FoveateError: As `build_connector` raises it.
    """
    return connector_named(connector_type).without_weights(**dict(options or {}))


def options_of_config(config: Any) -> dict[str, Any]:
    """Options of the connector of a LLaVA-like configuration.

    `projector_hidden_act` and `multimodal_projector_bias` of the configuration are the defaults of the options
    `activation` and `bias`, where the connector has these.
    """
    fields = {field.name for field in dataclasses.fields(connector_named(config.connector_type).options_class)}
    shared = {"activation": config.projector_hidden_act, "bias": config.multimodal_projector_bias}
    return {name: value for name, value in shared.items() if name in fields} | dict(config.connector_options or {})


def named(connector: Connector | None) -> dict[str, Any]:
    """The fields of a LLaVA-like configuration or processor that name a connector; None: the default of both."""
    if connector is None:
        return {}
    defaults = dataclasses.asdict(connector.options_class())
    chosen = {name: value for name, value in dataclasses.asdict(connector.options).items() if value != defaults[name]}
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    return {"connector_type": connector.name, "connector_options": options}


def connector_of_config(config: Any, vision_hidden_size: int) -> Connector:
    """Create the connector of a LLaVA-like configuration, for features of width `vision_hidden_size`.

    Raises:
        FoveateError: As `build_connector` raises it.
    """
    options = options_of_config(config)
    return build_connector(config.connector_type, vision_hidden_size, config.text_config.hidden_size, **options)


def check_same_connector(config: Any, processor: Any) -> None:
    """Check that a processor counts the tokens of the connector that a LLaVA-like configuration names.

    Raises:
        FoveateError: They name different connectors, or different options that output grids follow from.
    """
    if processor.connector_type != config.connector_type:
        raise FoveateError(
            f"the processor counts the tokens of the connector {processor.connector_type}, and the model has "
            f"{config.connector_type}."
        )
    read = connector_named(config.connector_type).read_options
    shared = options_of_config(config)
    ours = read(shared)
    theirs = read(
        {name: shared[name] for name in ("activation", "bias") if name in shared}
        | dict(processor.connector_options or {})
    )
    if ours != theirs:
        raise FoveateError(f"the processor counts the tokens of a connector with {theirs}, and the model has {ours}.")
