"""The KV cache of a next-scale model, with a policy that drops tokens after each token map.

A map is generated at once. Its queries attend to the cached tokens of coarser maps and all of their own map; then a
policy decides how many tokens every head of every layer keeps. Bytes are recorded map by map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from foveate.core.attention import attention_weights
from foveate.methods.kv_cache.ragged import Group, RaggedLayer


class Policy(ABC):
    """Decides which tokens stay after a map."""

    @abstractmethod
    def budgets(self, place: int, layer: int) -> Sequence[int]:
        """Tokens that every head of a layer may keep after map `place`."""

    @abstractmethod
    def observed(self, side: int) -> list[int]:
        """Queries of a map of side x side tokens that score the cached tokens; empty: no scores are needed."""

    @abstractmethod
    def keep(self, scores: Tensor, group: Group, budget: int, layer: int, place: int) -> Group:
        """What stays of a group.

        Args:
            scores: (B, G, m, n) attention of the m observed queries over what the group remembers.
            group: Heads with more than `budget` tokens, their own map last.
            budget: Tokens that stay.
            layer: The layer.
            place: The map that was just read.
        """


@dataclass(frozen=True)
class MapRecord:
    """Size of the cache around one map.

    Args:
        side: Of the map.
        seen: Tokens appended by its end.
        full_bytes: Keys and values of all of them, in all layers.
        bytes: Stored after it; 0 after the last map.
        peak_bytes: The most that was stored at once during it.
        kept: Tokens that every head of every layer keeps, [layer][head].
    """

    side: int
    seen: int
    full_bytes: int
    bytes: int
    peak_bytes: int
    kept: list[list[int]]

    def document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


class ScaleCache:
    """Keys and values of all layers while a picture is generated.

    Args:
        scales: Sides of the maps.
        layers: Number of layers.
        heads: Heads of each.
        policy: Decides which tokens stay; None keeps all.
        observers: Called as observer(cache, layer, queries) after each layer of each map has read and before
            anything is dropped.
    """

    def __init__(
        self,
        scales: Sequence[int],
        layers: int,
        heads: int,
        policy: Policy | None = None,
        observers: Sequence[Callable[..., None]] = (),
    ) -> None:
        self.scales = tuple(scales)
        self.layers = [RaggedLayer(heads) for _ in range(layers)]
        self.policy = policy
        self.observers = tuple(observers)
        self.place = 0
        self.records: list[MapRecord] = []
        self._peak = 0
        self._full = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """The most that was stored at once, the keys and values of the map being read included."""
        return max((record.peak_bytes for record in self.records), default=0)

    @property
    def kept_bytes(self) -> int:
        """The most that was kept between two maps."""
        return max((record.bytes for record in self.records), default=0)

    def begin(self, place: int) -> None:
        """Say that map `place` is read next."""
        self.place, self._peak = place, 0

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Read a map in one layer, then keep what the policy allows.

        Args:
            layer: Its number; layers come in order.
            queries: (B, H, n, d) of the map, like keys and values.
            keys: The map's.
            values: The map's.

        Returns:
            (B, H, n, d).
        """
        cached = self.layers[layer]
        cached.append(keys, values)
        self._peak = max(self._peak, self.nbytes)
        read = cached.attend(queries)
        for observer in self.observers:
            observer(self, layer, queries)
        if self.place == len(self.scales) - 1:
            cached.clear()  # no later map reads it
        elif self.policy is not None:
            self._shorten(cached, layer, queries, self.policy)
        if layer == len(self.layers) - 1:
            full_bytes = 2 * keys[:, :, :1].numel() * keys.element_size() * cached.appended * len(self.layers)
            kept = [layer.lengths for layer in self.layers]
            side = self.scales[self.place]
            self.records.append(MapRecord(side, cached.appended, full_bytes, self.nbytes, self._peak, kept))
        return read

    def _shorten(self, cached: RaggedLayer, layer: int, queries: Tensor, policy: Policy) -> None:
        budgets = list(policy.budgets(self.place, layer))
        observed = policy.observed(self.scales[self.place])
        groups: list[Group] = []
        for group in cached.groups:
            allowed = [min(budgets[head], group.length) for head in group.heads]
            for budget in sorted(set(allowed)):
                part = group.of([row for row, own_budget in enumerate(allowed) if own_budget == budget])
                if budget < part.length:
                    chosen = queries[:, list(part.heads)][:, :, observed]
                    weights = attention_weights(chosen.float(), part.keys.float(), chosen.shape[-1] ** -0.5)
                    part = policy.keep(weights, part, budget, layer, self.place)
                groups.append(part)
        cached.groups = _joined(groups)


def _joined(groups: list[Group]) -> list[Group]:
    """Groups joined by length, so that attention is called once for each length."""
    by_length: dict[int, list[Group]] = {}
    for group in groups:
        by_length.setdefault(group.length, []).append(group)
    joined = []
    for parts in by_length.values():
        if len(parts) == 1:
            joined.append(parts[0])
            continue
        heads = [head for part in parts for head in part.heads]
        order = sorted(range(len(heads)), key=heads.__getitem__)
        joined.append(
            Group(
                tuple(heads[row] for row in order),
                torch.cat([part.keys for part in parts], dim=1)[:, order],
                torch.cat([part.values for part in parts], dim=1)[:, order],
                torch.cat([part.token_indices() for part in parts], dim=1)[:, order],
            )
        )
    return joined
