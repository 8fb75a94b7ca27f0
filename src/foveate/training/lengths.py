"""Training of nested connectors at several lengths: which lengths a batch is trained at, and one encoding for all.

M3 averages the loss over all its lengths in every batch; MQT and TokenFLEX draw one length for every batch. A stage of
a recipe chooses by `lengths`, and connectors say what their paper does (`Connector.length_schedule`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.training.recipe import Lengths, Stage

#: Separates the random numbers of lengths from those of the data, which have the same seed.
_STREAM = 1


def lengths_of(stage: Stage, processor: Any) -> Lengths:
    """How a stage trains the lengths of the model of a processor.

    Without `lengths` in the recipe: as the paper of the connector does, and "full" where the model has one length, or
    where the stage has a plan or attention supervision, which are for all tokens, or does not run the connector.

    Raises:
        FoveateError: The stage names `lengths`, and the connector of the model is not nested.
    """
    connector = nested_part_of(processor)
    if connector is None or not connector.nested:
        if stage.lengths is not None:
            name = "the connector of transformers" if connector is None else f"the connector {connector.name}"
            raise FoveateError(
                f"stage {stage.name}: lengths is for nested connectors, and this model has {name}, which has one "
                "length; leave it out."
            )
        return "full"
    if stage.lengths is not None:
        return stage.lengths
    return "full" if stage.excludes_lengths() else connector.length_schedule or "full"


def nested_part_of(processor: Any) -> Any:
    """The connector or encoder of a processor whose length is chosen; None: it has a connector of transformers."""
    return getattr(processor, "nested_part", None) or getattr(processor, "connector", None)


def common_lengths(connector: Any, grids: Iterable[Grid]) -> tuple[int, ...]:
    """Numbers of tokens that a connector or encoder is trained at, for images of all these grids, ascending.

    Raises:
        FoveateError: There are none.
    """
    sizes = sorted(set(grids))
    common = set.intersection(*(set(connector.training_lengths(grid)) for grid in sizes))
    if not common:
        shown = ", ".join(f"{grid.rows} x {grid.columns}" for grid in sizes[:5])
        raise FoveateError(
            f"{connector.name} is trained at no number of tokens that all images of a batch can have "
            f"(patches: {shown}); train on images of one size that is large enough, or with `lengths: full`."
        )
    return tuple(sorted(common))


def drawn_length(lengths: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """One of the lengths (n,) as (1,), by the seed of the stage and the number of the batch alone."""
    place = np.random.default_rng((seed, number, _STREAM)).integers(len(lengths))
    return lengths[place : place + 1]


@contextmanager
def encoded_once(tower: nn.Module) -> Generator[None]:
    """Run a vision tower once, for all passes over the same images while the context is open.

    Every pass gets the output of the first, so that gradients of all passes add up in it.
    """
    forward: Any = tower.forward
    patched = "forward" in vars(tower)
    outputs: list[Any] = []

    def first_output(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(forward(*args, **kwargs))
        return outputs[0]

    tower.forward = first_output
    try:
        yield
    finally:
        if patched:
            tower.forward = forward
        else:
            del tower.forward
