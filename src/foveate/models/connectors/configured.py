"""Modules that a model names by a type and options: what connectors of images and of clips have in common."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from torch import nn

from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class ConnectorOptions:
    """Options of a connector: the hyperparameters of its paper with the defaults of the paper.

    Subclasses check their fields in `__post_init__` and raise FoveateError in one sentence. Values come from JSON, so
    that they are numbers, strings, booleans, None and tuples of these.
    """


O_co = TypeVar("O_co", bound=ConnectorOptions, covariant=True)


class ConfiguredModule(nn.Module, ABC, Generic[O_co]):
    """A trainable module with a name and checked options, between a vision tower and a language model.

    Args:
        vision_hidden_size: Width `D` of the features.
        text_hidden_size: Width `d` of the embeddings that the language model reads.
        **options: Fields of `options_class`.

    Attributes:
        options: The checked options.

    Raises:
        FoveateError: There is no such option, or it has an impossible value.
    """

    #: `connector_type` in configurations.
    name: ClassVar[str]
    #: Title of the paper.
    title: ClassVar[str]
    #: "arXiv 2407.02392", or "" for a control.
    paper: ClassVar[str] = ""
    #: The dataclass of the options.
    options_class: ClassVar[type[ConnectorOptions]] = ConnectorOptions
    #: `mm_projector_type` in the `config.json` of the authors' checkpoints in the layout of LLaVA.
    released_types: ClassVar[tuple[str, ...]] = ()
    #: Name of the module in the authors' weights: `model.<prefix>.*`.
    released_prefix: ClassVar[str] = "mm_projector"
    #: Names of the authors' weights below this prefix, as regular expressions, with the names here; patterns that begin
    #: with ^ are of full names. Several names share the rows of one weight evenly, as those of `nn.MultiheadAttention`.
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}

    #: Names of the authors' learned vectors below this prefix that are special tokens here, in the order of the layout
    #: of views that writes them: a released model gets a row for the placeholder and one for each of them.
    released_vectors: ClassVar[tuple[str, ...]] = ()

    options: O_co

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__()
        self.options = self.read_options(options)

    @classmethod
    def read_options(cls, options: Mapping[str, Any]) -> O_co:
        """Check options by name; lists, which JSON has in place of tuples, become tuples.

        Raises:
            FoveateError: There is no such option, or it has an impossible value.
        """
        known = [field.name for field in dataclasses.fields(cls.options_class)]
        if unknown := sorted(set(options) - set(known)):
            possible = f"possible are {', '.join(known)}" if known else "it has none"
            raise FoveateError(f"the connector {cls.name} has no option {', '.join(unknown)}; {possible}.")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        return cast("O_co", cls.options_class(**values))

    @classmethod
    def without_weights(cls, **options: Any) -> Self:
        """The connector without its layers, for what follows from sizes alone."""
        connector = cls.__new__(cls)
        ConfiguredModule.__init__(connector, 0, 0, **options)
        return connector

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Options in an authors' `config.json` of one of `released_types`; None: it is of another connector."""
        return {}

    def reset_parameters(self) -> None:
        """Initialize the parameters that no layer of torch initializes.

        Models call it after they have initialized all layers. Use `transformers.initialization`, which leaves loaded
        weights as they are.
        """


def whole_number(name: str, value: Any, least: int = 1) -> None:
    """Check an option that is a whole number.

    Raises:
        FoveateError: It is not one, or is below `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FoveateError(f"{name} must be a whole number from {least} on, not {value!r}.")
