"""Rotary embedding with several positions per token, for PPE in a live model (arXiv 2510.22936).

A merged token is rotated by the positions of several of its members, each in its own range of rotary dimensions
(`foveate.methods.pre_llm.ppe.rotary_members`). The model's own rotary embedding is called once per member, and each
dimension takes the result of its member, so any scaling of positions that a model does still applies.
Keys are cached after rotation, and generated tokens have one position each: decoding needs no change.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.sequence import PlacedSelection
from foveate.methods.pre_llm.ppe import rotary_members
from foveate.runtime.patches import Patches


def member_position_ids(
    pruned_ids: Tensor, full_ids: Tensor, columns: Tensor, selections: Sequence[PlacedSelection]
) -> list[Tensor]:
    """Position ids of the pruned sequence, one tensor per member of a merged token.

    Args:
        pruned_ids: (B, P) or (axes, B, P), one position per token.
        full_ids: (B, L), (1, L) or (axes, B, L), those of the full sequence.
        columns: (B, P), see `foveate.core.sequence`.
        selections: The selections; tokens of images without `positions` have one position.
    """
    positions_by_image = [(image, image.selection.positions) for image in selections]
    merged_images = [(image, positions) for image, positions in positions_by_image if positions is not None]
    full_ids = full_ids.expand(*pruned_ids.shape[:-1], full_ids.shape[-1])
    result = [pruned_ids.clone() for _ in range(max((positions.shape[1] for _, positions in merged_images), default=1))]
    for image, positions in merged_images:
        places = torch.searchsorted(columns[image.row].contiguous(), image.kept)
        for member, ids in enumerate(result):
            source = image.columns[positions[:, member % positions.shape[1]]]
            ids[..., image.row, places] = full_ids[..., image.row, source]
    return result


class MultiPositionRoPE:
    """Hook on a language model's rotary embedding that rotates merged tokens by several positions.

    Args:
        text: A language model with `rotary_emb(x, position_ids)` giving cos and sin (B, P, d).
    """

    def __init__(self, text: nn.Module) -> None:
        self.text = text
        self._rotary: Any = getattr(text, "rotary_emb", None)
        self._local = local()

    def attach(self, patches: Patches) -> None:
        """Install the hook, until `patches` are undone."""
        if self._rotary is not None:
            patches.after(self._rotary, self._rotated, with_kwargs=True)

    @contextmanager
    def use_positions(self, ids: Sequence[Tensor]) -> Generator[None]:
        """Rotate this thread's prompt by these positions while the context is open.

        Args:
            ids: From `member_position_ids`; an empty list changes nothing.

        Raises:
            FoveateError: the language model has no such rotary embedding.
        """
        if ids and self._rotary is None:
            raise FoveateError(
                f"{type(self.text).__name__} has no rotary embedding, which several positions per token need."
            )
        self._local.ids = ids
        try:
            yield
        finally:
            self._local.ids = ()

    def _rotated(self, rotary: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Hook after the rotary embedding: combine its results for all members of the prompt's tokens."""
        ids: Sequence[Tensor] = getattr(self._local, "ids", ())
        names = ("x", "position_ids")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        extra = args[len(names) :]
        position_ids = call.get("position_ids")
        if not ids or position_ids is None or position_ids.shape[-1] != ids[0].shape[-1]:
            return None
        # Some models get text positions before the axes, and remove them before the rotary embedding.
        member_ids = [member[len(member) - len(position_ids) :] if member.ndim == 3 else member for member in ids]
        options = {name: value for name, value in call.items() if name not in names}
        rotations = [rotary.forward(call["x"], member, *extra, **options) for member in member_ids]
        cos, sin = (torch.stack(parts) for parts in zip(*rotations, strict=True))
        members = channel_members(self.text, cos[0], len(ids), position_ids.ndim == 3)
        place = members.expand(cos.shape[1:])[None]
        return cos.gather(0, place)[0], sin.gather(0, place)[0]


def channel_members(text: Any, cos: Tensor, num_members: int, axes: bool) -> Tensor:
    """(d,) the member, of `num_members`, that rotates each channel of a head.

    Args:
        text: The language model.
        cos: (..., d), a result of its rotary embedding.
        num_members: Members K per token.
        axes: Whether positions have several axes (M-RoPE).
    """
    half = cos.shape[-1] // 2
    parameters = getattr(getattr(text, "config", None), "rope_parameters", None) or {}
    sections = parameters.get("mrope_section") if axes else None
    interleaved = bool(sections and parameters.get("mrope_interleaved"))
    members = rotary_members(tuple(sections or (half,)), num_members, interleaved=interleaved).to(cos.device)
    # Channel pairs are split in halves (Llama, Qwen) or interleaved (GLM): the model's own result shows which.
    turns = not torch.equal(cos[..., :half], cos[..., half:])
    return members.repeat_interleave(2) if turns else torch.cat([members, members])


def gather_rotations(text: Any, value: Tensor, row: int, sources: Tensor, axes: bool) -> Tensor:
    """Cosines or sines (k, d) of tokens that are rotated by the positions of several tokens.

    Args:
        text: The language model.
        value: (B or 1, L, d), of all tokens of the pass.
        row: Index of the sequence in the batch.
        sources: (k, K) the columns whose positions rotate each token.
        axes: Whether positions have several axes.
    """
    row_value = value[row if len(value) > 1 else 0]
    members = channel_members(text, row_value, sources.shape[1], axes)
    return row_value.gather(0, sources[:, members])
