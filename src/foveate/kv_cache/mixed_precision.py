"""A cache layer whose tokens are stored in few bits: more for some of them, fewer for the others.

As in ZipCache (He et al., NeurIPS 2024, arXiv 2405.14256): keys have a range for every channel, values one for every
token after their channels were divided by the root of the largest magnitude. `transformers`' own quantised layers
store one number of bits, and quantise everything again whenever their full-precision part is full; here what was
stored once stays as it is. Tokens are quantised in chunks; what came since the last one is kept as it came.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from foveate.core import packing

#: Bits from which on tokens are stored as they came.
FULL = 16


@dataclass(frozen=True)
class Part:
    """Tokens of one precision.

    Args:
        bits: Of every number; 16: as they came.
        row: (m,) the sequence of each token.
        place: (m,) its place in its chunk.
        keys: (m, H, bytes) packed, or (m, H, d).
        values: Likewise.
        key_range: Begin and step, (B, H, d).
        value_range: Begin and step, (m, H, 1).
        norm: (B, H, d) what the channels of values were divided by.
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
        """The tokens `chosen` (B, n) bool of keys and values (B, H, n, d)."""
        row, place = chosen.nonzero(as_tuple=True)
        key, value = keys[row, :, place], values[row, :, place]
        small = torch.int32
        if bits >= FULL:
            return cls(bits, row.to(small), place.to(small), key, value, (), (), None, key.shape[-1])
        shape = (len(keys), *key.shape[1:])
        index = row[:, None, None].expand_as(key)

        def over(tokens: Tensor, how: str) -> Tensor:
            """The least or the largest of every row and channel."""
            start = torch.zeros(shape, dtype=torch.float32, device=key.device)
            return start.scatter_reduce(0, index, tokens.float(), how, include_self=False)

        key_range = packing.ranges(over(key, "amin"), over(key, "amax"), bits, key.dtype)
        tiny = torch.finfo(value.dtype).tiny
        norm = over(value.abs(), "amax").sqrt().clamp(min=tiny**0.5).to(value.dtype)
        even = value.float() / norm[row].float()
        value_range = packing.ranges(even.amin(-1, keepdim=True), even.amax(-1, keepdim=True), bits, value.dtype)
        return cls(
            bits,
            row.to(small),
            place.to(small),
            packing.encode(key, *(bound[row] for bound in key_range), bits),
            packing.encode(even, *value_range, bits),
            key_range,
            value_range,
            norm,
            key.shape[-1],
        )

    def write(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Put the tokens where they belong in keys and values (B, n, H, d), whose chunk begins at `start`."""
        row, place = self.row.long(), self.place.long() + start
        if self.norm is None:
            keys[row, place], values[row, place] = self.keys, self.values
            return
        keys[row, place] = packing.decode(
            self.keys, *(bound[row] for bound in self.key_range), self.bits, self.dimension
        )
        even = packing.decode(self.values, *self.value_range, self.bits, self.dimension)
        values[row, place] = even * self.norm[row]

    def logits(self, query: Tensor, tokens: slice, row: int) -> Tensor:
        """Products (H, g, t) float32 of queries (H, g, d) float32 with the keys of some tokens of one sequence.

        Keys are never formed: with key = low + step * code, q . key = q . low + (q * step) . code.
        """
        keys = self.keys[tokens]
        if self.norm is None:
            return query @ keys.float().permute(1, 2, 0)
        low, step = (bound[row].float()[:, None] for bound in self.key_range)
        found, query = (query * low).sum(dim=-1, keepdim=True), query * step
        for channels, factor, codes in packing.planes(keys, self.bits, self.dimension):
            found = found + (query[..., channels] / factor) @ codes.float().permute(1, 2, 0)
        return found

    def weighed(self, weights: Tensor, tokens: slice, row: int) -> Tensor:
        """Sums (H, g, d) float32 of the values of some tokens of one sequence by weights (H, g, t); formed no more."""
        values = self.values[tokens]
        if self.norm is None:
            return weights @ values.float().transpose(0, 1)
        low, step = (bound[tokens].float().permute(1, 2, 0) for bound in self.value_range)
        begin, planes = (weights * low).sum(dim=-1, keepdim=True), packing.planes(values, self.bits, self.dimension)
        weights = weights * step
        sums = [weights @ codes.float().transpose(0, 1) / factor for _, factor, codes in planes]
        return (begin + torch.cat(sums, dim=-1)) * self.norm[row].float()[:, None]

    def slices(self, batch: int) -> list[slice]:
        """Which of the tokens are of each sequence; they stand in the order of sequences."""
        if batch == 1:
            return [slice(0, len(self.row))]
        ends = [0, *torch.searchsorted(self.row, torch.arange(batch).to(self.row), right=True).tolist()]
        return [slice(begin, end) for begin, end in itertools.pairwise(ends)]

    def where(self, tokens: Tensor, row: Tensor | None = None) -> Part:
        """Only some tokens (indices), with other rows."""
        return replace(
            self,
            row=self.row[tokens] if row is None else row.to(self.row),
            place=self.place[tokens],
            keys=self.keys[tokens],
            values=self.values[tokens],
            value_range=tuple(bound[tokens] for bound in self.value_range),
        )

    def select(self, rows: Tensor) -> Part:
        """The sequences `rows`, in this order."""
        new, tokens = (self.row.long() == rows[:, None]).nonzero(as_tuple=True)
        short = self.where(tokens, new)
        return replace(
            short,
            key_range=tuple(bound[rows] for bound in self.key_range),
            norm=None if self.norm is None else self.norm[rows],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        own = [self.row, self.place, self.keys, self.values, *self.key_range, *self.value_range]
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (*own, *([] if self.norm is None else [self.norm]))
        )


class MixedLayer(DynamicLayer):
    """A layer of a cache that stores tokens in few bits.

    Args:
        layer: What the cache held so far, all of it still to be stored.
        bits: Of tokens that matter, and of the others.
        residual: Written tokens that are kept as they came before they are stored in the bits of those that matter.
    """

    def __init__(self, layer: DynamicLayer, bits: tuple[int, int], residual: int) -> None:
        super().__init__()
        self.bits = bits
        self.residual = residual
        self.chunks: list[tuple[int, list[Part]]] = []
        #: Whether who appends attends by `attend`: then `update` reads nothing.
        self.skip_decoding = False
        keys, values = layer.keys, layer.values
        assert keys is not None and values is not None
        self.recent: tuple[Tensor, Tensor] | None = (keys, values)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    # The base class sets them; here they are what is read.

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
        """Bytes of everything that the layer holds."""
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

    def store(self, matters: Tensor, real: Tensor) -> None:
        """Store what came since the last chunk.

        Args:
            matters: (B, n) bool, which of the last n tokens get more bits; those before them that are still as they
                came get them too.
            real: (B, n) bool, False for padding, which is not stored.
        """
        assert self.recent is not None
        length = self.recent[0].shape[2]
        before = length - matters.shape[1]
        matters, real = (F.pad(kind, (before, 0), value=True) for kind in (matters, real))
        more, fewer = self.bits
        parts = [Part.of(*self.recent, matters & real, more), Part.of(*self.recent, ~matters & real, fewer)]
        self.chunks.append((length, parts))
        self.recent = (self.recent[0][:, :, :0].clone(), self.recent[1][:, :, :0].clone())

    # What a cache asks of its layers

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, n, d); returns all of them."""
        if self.recent is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.recent = (key_states, value_states)
            return self.recent
        if self.chunks and self.recent[0].shape[2] >= self.residual:
            whole = torch.ones(len(key_states), self.recent[0].shape[2], dtype=torch.bool, device=key_states.device)
            self.store(whole, whole)
        self.recent = (torch.cat([self.recent[0], key_states], dim=2), torch.cat([self.recent[1], value_states], dim=2))
        return self.recent if self.skip_decoding else self.read()

    def attend(self, query: Tensor, scaling: float, seen: Tensor | None = None) -> Tensor | None:
        """Attention of one new token a sequence to all that is held, without decoding it: (B, 1, H, d).

        Args:
            query: (B, H, 1, d), rotated; the heads of the cache divide H.
            scaling: Factor of the logits.
            seen: (B, n) bool, which of the held tokens count; None: all. Padding that was not stored does not.

        Returns:
            None where a stored token does not count: then there is no way but to `read`.
        """
        assert self.recent is not None
        batch, heads = self.recent[0].shape[:2]
        parts = [part for _, parts in self.chunks for part in parts if len(part.row)]
        slices = [part.slices(batch) for part in parts]
        if seen is not None:
            held = torch.tensor([sum(own[row].stop - own[row].start for own in slices) for row in range(batch)])
            if not torch.equal(seen[:, : self.stored].sum(dim=1).cpu(), held):
                return None
        found = []
        for row in range(batch):
            own = query[row, :, 0].unflatten(0, (heads, -1)).float() * scaling
            new = own @ self.recent[0][row].float().transpose(1, 2)
            if seen is not None:
                new = new.masked_fill(~seen[row, self.stored :], -torch.inf)
            logits = [part.logits(own, at[row], row) for part, at in zip(parts, slices, strict=True)]
            sizes = [one.shape[-1] for one in logits]
            *weights, last = torch.cat([*logits, new], dim=-1).softmax(dim=-1).split([*sizes, new.shape[-1]], dim=-1)
            out = last @ self.recent[1][row].float()
            for part, at, weight in zip(parts, slices, weights, strict=True):
                out = out + part.weighed(weight, at[row], row)
            found.append(out.flatten(0, 1))
        return torch.stack(found)[:, None].to(query.dtype)

    def get_seq_length(self) -> int:
        """Tokens that are held."""
        return 0 if self.recent is None else self.stored + self.recent[0].shape[2]

    def reset(self) -> None:
        """Forget everything."""
        self.chunks, self.recent, self.is_initialized = [], None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; the number is negative."""
        left = self.get_seq_length() - abs(tokens_to_remove)
        if self.recent is None or tokens_to_remove == 0:
            return
        new = max(left - self.stored, 0)
        self.recent = (self.recent[0][:, :, :new], self.recent[1][:, :, :new])
        kept, start = [], 0
        for length, parts in self.chunks:
            stays = min(length, left - start)
            if stays > 0:
                kept.append((stays, [part.where((part.place < stays).nonzero().flatten()) for part in parts]))
            start += length
        self.chunks = kept

    def _select(self, rows: Tensor) -> None:
        if self.recent is None:
            return
        rows = rows.to(self.recent[0].device)
        self.recent = (self.recent[0][rows], self.recent[1][rows])
        self.chunks = [(length, [part.select(rows) for part in parts]) for length, parts in self.chunks]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the sequences be those of `beam_idx` (B,)."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.recent is not None:
            self._select(torch.arange(len(self.recent[0])).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep some sequences."""
        self._select(torch.as_tensor(indices))
