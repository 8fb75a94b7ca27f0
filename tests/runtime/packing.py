"""Prompts packed into one row, as training without padding writes them, and each of them alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.families import family_of
from tests.families.zoo import Specimen

#: The samples of a row: one with an image, one with two, one with a larger one.
SAMPLES = (((3, 4),), ((2, 3), (4, 3)), ((4, 5),))


def alone(specimen: Specimen, number: int, seed: int = 0) -> dict[str, Any]:
    """One sample by itself, without padding or a mask, with its position ids."""
    model = specimen.model()
    inputs = specimen.prompts(model, [SAMPLES[number] if row == number else () for row in range(number + 1)], seed=seed)
    inputs = {k: v[number : number + 1] if _of_rows(v, inputs) else v for k, v in inputs.items()}
    real = inputs.pop("attention_mask")[0].bool()
    inputs = {k: v[:, real] if _of_sequence(v, len(real)) else v for k, v in inputs.items()}
    return inputs | {"position_ids": positions_of(specimen, inputs)}


def packed(specimen: Specimen, samples: list[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """All samples as one row: position ids begin anew, and there is no mask."""
    batch = specimen.prompts(specimen.model(), SAMPLES, seed=seed)
    real = batch.pop("attention_mask").bool()
    rows = {k: v[real][None] if _of_rows(v, batch) else v for k, v in batch.items()}
    return rows | {"position_ids": torch.cat([sample["position_ids"] for sample in samples], dim=-1)}


def positions_of(specimen: Specimen, inputs: dict[str, Any]) -> Tensor:
    """(1, L), or (4, 1, L) where a language model has three axes: then those of plain text stand before them."""
    model = specimen.model()
    family = family_of(model)
    seen: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    handle = family.text(family.core(model)).register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    plain = torch.arange(inputs["input_ids"].shape[1])[None]
    own = seen.get("position_ids")
    return plain if own is None or own.ndim == 2 else torch.cat([plain[None], own[-3:]])


def _of_rows(value: Any, inputs: dict[str, Any]) -> bool:
    return torch.is_tensor(value) and value.shape == inputs["input_ids"].shape


def _of_sequence(value: Any, length: int) -> bool:
    return torch.is_tensor(value) and value.ndim == 2 and value.shape == (1, length)
