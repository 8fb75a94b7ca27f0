"""Tokens that carry more than one position: the rotary side of PPE in a live model (arXiv 2510.22936).

A merged token is rotated by the positions of several of its members, each in its own stretch of the rotary dimensions
(`foveate.selection.ppe.rotary_members`). The model's own rotary embedding is asked once a member, and each dimension
takes the answer of the member that it belongs to; so whatever a model does to positions, it goes on doing. Keys are
cached after rotation, and what is written later has one position a token: decoding needs nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.runtime.sequence import Chosen
from foveate.selection.ppe import rotary_members


def carried_ids(short: Tensor, long: Tensor, columns: Tensor, chosen: Sequence[Chosen]) -> list[Tensor]:
    """Position ids of the short sequence, once for every member that a token may carry.

    Args:
        short: (B, P) or (axes, B, P), the ordinary ids.
        long: (B, L), (1, L) or (axes, B, L), those of the long sequence.
        columns: (B, P), see `foveate.runtime.sequence`.
        chosen: What stays; images without `positions` carry their own alone.
    """
    given = [(image, image.selection.positions) for image in chosen]
    several = [(image, positions) for image, positions in given if positions is not None]
    long = long.expand(*short.shape[:-1], long.shape[-1])
    result = [short.clone() for _ in range(max((positions.shape[1] for _, positions in several), default=1))]
    for image, positions in several:
        places = torch.searchsorted(columns[image.row].contiguous(), image.kept)
        for member, ids in enumerate(result):
            source = image.columns[positions[:, member % positions.shape[1]]]
            ids[..., image.row, places] = long[..., image.row, source]
    return result


@contextmanager
def carrying(text: nn.Module, ids: Sequence[Tensor]) -> Generator[None]:
    """Inside this context the language model's prompt is rotated by several positions a token.

    Args:
        text: A language model with `rotary_emb(x, position_ids)` giving cos and sin (B, P, d).
        ids: From `carried_ids`; where there are none nothing changes.

    Raises:
        FoveateError: the language model has no such rotary embedding.
    """
    if not ids:
        yield
        return
    rotary: Any = getattr(text, "rotary_emb", None)
    if rotary is None:
        raise FoveateError(f"{type(text).__name__} has no rotary positions that tokens could carry several of.")
    original, before = rotary.forward, vars(rotary).get("forward")
    parameters = getattr(getattr(text, "config", None), "rope_parameters", None) or {}

    def forward(x: Tensor, position_ids: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        if position_ids.shape[-1] != ids[0].shape[-1]:
            return original(x, position_ids, *rest, **options)
        # Some models are given a row of text positions before the axes, and take it off for themselves.
        own = [member[len(member) - len(position_ids) :] if member.ndim == 3 else member for member in ids]
        found = [original(x, member, *rest, **options) for member in own]
        cos, sin = (torch.stack(parts) for parts in zip(*found, strict=True))
        half = cos.shape[-1] // 2
        sections = parameters.get("mrope_section") if position_ids.ndim == 3 else None
        interleaved = bool(sections and parameters.get("mrope_interleaved"))
        members = rotary_members(tuple(sections or (half,)), len(ids), interleaved=interleaved).to(cos.device)
        # Halves stand one after the other (Llama, Qwen) or take turns (GLM): the model's own answer shows which.
        turns = not torch.equal(cos[0][..., :half], cos[0][..., half:])
        members = members.repeat_interleave(2) if turns else torch.cat([members, members])
        place = members.expand(cos.shape[1:])[None]
        return cos.gather(0, place)[0], sin.gather(0, place)[0]

    rotary.forward = forward
    try:
        yield
    finally:
        if before is None:
            del rotary.forward
        else:
            rotary.forward = before
