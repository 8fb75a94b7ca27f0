"""A mixed-precision cache layer: salient tokens are stored in more bits than the others.

As in ZipCache (He et al., NeurIPS 2024, arXiv 2405.14256): keys have a range per channel, values one per
token after their channels were divided by the root of the largest magnitude. The quantised layers of `transformers`
use one number of bits, and quantise everything again whenever their full-precision part is full; here stored
tokens are never requantised. Tokens are quantised in chunks; those since the last chunk stay in full precision.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from foveate.core import packing

#: Bits from which on tokens are stored in full precision.
FULL = 16


@dataclass(frozen=True)
class Part:
    """Tokens of one precision.

    Args:
        bits: Bits of every value; 16: full precision.
        row: (m,) the sequence of each token.
        place: (m,) its position in its chunk.
        keys: (m, H, bytes) packed, or (m, H, d).
        values: Likewise.
        key_range: Offset and step, (B, H, d).
        value_range: Offset and step, (m, H, 1).
        norm: (B, H, d) divisors of the channels of values.
        dimension: Channels d of a head.
    """

    bits: int
    row: Tensor
    place: Tensor
    keys: Tensor
    values: Tensor
    key_range: tuple[Tensor, ...]
    value_range: tuple[Tensor, ...]
    norm: Tensor | None
    dimension: int

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, chosen: Tensor, bits: int) -> Part:
        """Quantise the tokens `chosen` (B, n) bool of keys and values (B, H, n, d)."""
        row, place = chosen.nonzero(as_tuple=True)
        key, value = keys[row, :, place], values[row, :, place]
        index_dtype = torch.int32
        if bits >= FULL:
            return cls(bits, row.to(index_dtype), place.to(index_dtype), key, value, (), (), None, key.shape[-1])
        shape = (len(keys), *key.shape[1:])
        index = row[:, None, None].expand_as(key)

        def reduce(tokens: Tensor, reduction: str) -> Tensor:
            """Minimum or maximum of every row and channel."""
            start = torch.zeros(shape, dtype=torch.float32, device=key.device)
            return start.scatter_reduce(0, index, tokens.float(), reduction, include_self=False)

        key_range = packing.ranges(reduce(key, "amin"), reduce(key, "amax"), bits, key.dtype)
        tiny = torch.finfo(value.dtype).tiny
        norm = reduce(value.abs(), "amax").sqrt().clamp(min=tiny**0.5).to(value.dtype)
        normalised = value.float() / norm[row].float()
        value_range = packing.ranges(
            normalised.amin(-1, keepdim=True), normalised.amax(-1, keepdim=True), bits, value.dtype
        )
        return cls(
            bits,
            row.to(index_dtype),
            place.to(index_dtype),
            packing.encode(key, *(bound[row] for bound in key_range), bits),
            packing.encode(normalised, *value_range, bits),
            key_range,
            value_range,
            norm,
            key.shape[-1],
        )

    def write(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Write the decoded tokens into keys and values (B, n, H, d), for a chunk that begins at `start`."""
        row, place = self.row.long(), self.place.long() + start
        if self.norm is None:
            keys[row, place], values[row, place] = self.keys, self.values
            return
        keys[row, place] = packing.decode(
            self.keys, *(bound[row] for bound in self.key_range), self.bits, self.dimension
        )
        normalised = packing.decode(self.values, *self.value_range, self.bits, self.dimension)
        values[row, place] = normalised * self.norm[row]

    def logits(self, query: Tensor, tokens: slice, row: int) -> Tensor:
        """Products (H, g, t) float32 of queries (H, g, d) float32 with the keys of some tokens of one sequence.

        Keys are not decoded: with key = low + step * code, q . key = q . low + (q * step) . code.
        """
        keys = self.keys[tokens]
        if self.norm is None:
            return query @ keys.float().permute(1, 2, 0)
        low, step = (bound[row].float()[:, None] for bound in self.key_range)
        logits, query = (query * low).sum(dim=-1, keepdim=True), query * step
        for channels, factor, codes in packing.planes(keys, self.bits, self.dimension):
            logits = logits + (query[..., channels] / factor) @ codes.float().permute(1, 2, 0)
        return logits

    def weighted_values(self, weights: Tensor, tokens: slice, row: int) -> Tensor:
        """Weighted sums (H, g, d) float32 of the values of some tokens of one sequence, by weights (H, g, t)."""
        values = self.values[tokens]
        if self.norm is None:
            return weights @ values.float().transpose(0, 1)
        low, step = (bound[tokens].float().permute(1, 2, 0) for bound in self.value_range)
        offset, planes = (weights * low).sum(dim=-1, keepdim=True), packing.planes(values, self.bits, self.dimension)
        weights = weights * step
        sums = [weights @ codes.float().transpose(0, 1) / factor for _, factor, codes in planes]
        return (offset + torch.cat(sums, dim=-1)) * self.norm[row].float()[:, None]

    def slices(self, batch: int) -> list[slice]:
        """Range of the tokens of each sequence; tokens are ordered by sequence."""
        if batch == 1:
            return [slice(0, len(self.row))]
        ends = [0, *torch.searchsorted(self.row, torch.arange(batch).to(self.row), right=True).tolist()]
        return [slice(begin, end) for begin, end in itertools.pairwise(ends)]

    def where(self, tokens: Tensor, row: Tensor | None = None) -> Part:
        """Select tokens by index, optionally with other rows."""
        return replace(
            self,
            row=self.row[tokens] if row is None else row.to(self.row),
            place=self.place[tokens],
            keys=self.keys[tokens],
            values=self.values[tokens],
            value_range=tuple(bound[tokens] for bound in self.value_range),
        )

    def select(self, rows: Tensor) -> Part:
        """Select the sequences `rows`, in this order."""
        new_rows, tokens = (self.row.long() == rows[:, None]).nonzero(as_tuple=True)
        part = self.where(tokens, new_rows)
        return replace(
            part,
            key_range=tuple(bound[rows] for bound in self.key_range),
            norm=None if self.norm is None else self.norm[rows],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        tensors = [self.row, self.place, self.keys, self.values, *self.key_range, *self.value_range]
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (*tensors, *([] if self.norm is None else [self.norm]))
        )


class MixedLayer(DynamicLayer):
    """A cache layer with tokens in two precisions.

    Args:
        layer: The layer so far, in full precision.
        bits: Bits of salient tokens, and of the others.
        residual: Generated tokens that are kept in full precision before they are stored as salient ones.
    """

    def __init__(self, layer: DynamicLayer, bits: tuple[int, int], residual: int) -> None:
        super().__init__()
        self.bits = bits
        self.residual = residual
        self.chunks: list[tuple[int, list[Part]]] = []
        #: Whether the caller of `update` attends with `attend`: then `update` decodes nothing.
        self.skip_decoding = False
        keys, values = layer.keys, layer.values
        assert keys is not None and values is not None
        self.recent: tuple[Tensor, Tensor] | None = (keys, values)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    # The base class assigns keys and values; here they are decoded on access.

    @property
    def keys(self) -> Tensor | None:
        """(B, H, n, d) all keys, decoded."""
        return None if self.recent is None else self.read()[0]

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        pass

    @property
    def values(self) -> Tensor | None:
        """(B, H, n, d) all values, decoded."""
        return None if self.recent is None else self.read()[1]

    @values.setter
    def values(self, value: Tensor | None) -> None:
        pass

    @property
    def stored(self) -> int:
        """Tokens in chunks."""
        return sum(length for length, _ in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of the layer."""
        recent = sum(tensor.numel() * tensor.element_size() for tensor in self.recent or ())
        return recent + sum(part.nbytes for _, parts in self.chunks for part in parts)

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, n, d) of all tokens; padding that was not stored is 0."""
        assert self.recent is not None
        if not self.chunks:
            return self.recent
        new, (batch, heads, _, dimension) = self.recent, self.recent[0].shape
        both = tuple(tensor.new_zeros(batch, self.stored, heads, dimension) for tensor in new)
        start = 0
        for length, parts in self.chunks:
            for part in parts:
                part.write(*both, start)
            start += length
        keys, values = (torch.cat([old.transpose(1, 2), last], dim=2) for old, last in zip(both, new, strict=True))
        return keys, values

    def store(self, salient: Tensor, real: Tensor) -> None:
        """Quantise the tokens since the last chunk.

        Args:
            salient: (B, n) bool, which of the last n tokens get more bits; unstored ones before them
                get them too.
            real: (B, n) bool, False for padding, which is not stored.
        """
        assert self.recent is not None
        length = self.recent[0].shape[2]
        before = length - salient.shape[1]
        salient, real = (F.pad(kind, (before, 0), value=True) for kind in (salient, real))
        more, fewer = self.bits
        parts = [Part.of(*self.recent, salient & real, more), Part.of(*self.recent, ~salient & real, fewer)]
        self.chunks.append((length, parts))
        self.recent = (self.recent[0][:, :, :0].clone(), self.recent[1][:, :, :0].clone())

    # Interface of cache layers

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, n, d); returns all of them."""
        if self.recent is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.recent = (key_states, value_states)
            return self.recent
        if self.chunks and self.recent[0].shape[2] >= self.residual:
            everything = torch.ones(
                len(key_states), self.recent[0].shape[2], dtype=torch.bool, device=key_states.device
            )
            self.store(everything, everything)
        self.recent = (torch.cat([self.recent[0], key_states], dim=2), torch.cat([self.recent[1], value_states], dim=2))
        return self.recent if self.skip_decoding else self.read()

    def attend(self, query: Tensor, scaling: float, visible: Tensor | None = None) -> Tensor | None:
        """Attention of one new token per sequence to the whole layer, without decoding it: (B, 1, H, d).

        Args:
            query: (B, H, 1, d), rotated; the heads of the cache divide H.
            scaling: Scale of the logits.
            visible: (B, n) bool, which tokens of the layer count; None: all. Padding that was not stored does not.

        Returns:
            None where a stored token does not count: then the layer must be decoded with `read`.
        """
        assert self.recent is not None
        batch, heads = self.recent[0].shape[:2]
        parts = [part for _, parts in self.chunks for part in parts if len(part.row)]
        slices = [part.slices(batch) for part in parts]
        if visible is not None:
            num_stored = torch.tensor(
                [sum(row_query[row].stop - row_query[row].start for row_query in slices) for row in range(batch)]
            )
            if not torch.equal(visible[:, : self.stored].sum(dim=1).cpu(), num_stored):
                return None
        outputs = []
        for row in range(batch):
            row_query = query[row, :, 0].unflatten(0, (heads, -1)).float() * scaling
            new = row_query @ self.recent[0][row].float().transpose(1, 2)
            if visible is not None:
                new = new.masked_fill(~visible[row, self.stored :], -torch.inf)
            logits = [part.logits(row_query, at[row], row) for part, at in zip(parts, slices, strict=True)]
            sizes = [part_logits.shape[-1] for part_logits in logits]
            *weights, last = torch.cat([*logits, new], dim=-1).softmax(dim=-1).split([*sizes, new.shape[-1]], dim=-1)
            out = last @ self.recent[1][row].float()
            for part, at, weight in zip(parts, slices, weights, strict=True):
                out = out + part.weighted_values(weight, at[row], row)
            outputs.append(out.flatten(0, 1))
        return torch.stack(outputs)[:, None].to(query.dtype)

    def get_seq_length(self) -> int:
        """Number of tokens in the layer."""
        return 0 if self.recent is None else self.stored + self.recent[0].shape[2]

    def reset(self) -> None:
        """Empty the layer."""
        self.chunks, self.recent, self.is_initialized = [], None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; the number is negative."""
        remaining = self.get_seq_length() - abs(tokens_to_remove)
        if self.recent is None or tokens_to_remove == 0:
            return
        new = max(remaining - self.stored, 0)
        self.recent = (self.recent[0][:, :, :new], self.recent[1][:, :, :new])
        kept, start = [], 0
        for length, parts in self.chunks:
            num_kept = min(length, remaining - start)
            if num_kept > 0:
                kept.append((num_kept, [part.where((part.place < num_kept).nonzero().flatten()) for part in parts]))
            start += length
        self.chunks = kept

    def _select(self, rows: Tensor) -> None:
        if self.recent is None:
            return
        rows = rows.to(self.recent[0].device)
        self.recent = (self.recent[0][rows], self.recent[1][rows])
        self.chunks = [(length, [part.select(rows) for part in parts]) for length, parts in self.chunks]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the sequences `beam_idx` (B,)."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.recent is not None:
            self._select(torch.arange(len(self.recent[0])).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Select some sequences."""
        self._select(torch.as_tensor(indices))
