"""PPE's cascade: clustering of hidden states at several layers, with several positions a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.pre_llm import divide
from foveate.core.tokens import Selection, merge_tokens
from foveate.methods.pre_llm.ppe import MOST_MEMBERS, clustered
from foveate.methods.shared.layer_parts import layer_parts


@dataclass(frozen=True)
class PPEDecoder(DecoderMethod):
    """Merges hidden states by density-peak clustering at layers of the language model; rows keep several positions.

    Each frame, tile or image is clustered by itself as in `ppe`, on the hidden states before the layer, and a cluster
    becomes its plain mean. A row of tokens that had one position each carries those of up to K members. Tokens that
    carry K already, from `ppe` or from an earlier layer, bring K each; of these the K of the cluster's first token are
    kept. "Positional Preservation Embedding for Multimodal Large Language Models" (arXiv 2510.22936), the cascade. A
    budget is meant for every layer: `ppe:45% + ppe-decoder:45%` is the paper's setting of stages before the language
    model and before the layers 11, 23 and 35 of 36.

    The authors' code has the cascade for clips only, divides the remaining tokens into frames of equal size whatever
    they hold, and takes the last token of a cluster (`reference`). Positions are not counted anew.

    Args:
        members: K, positions that a merged token carries.
        neighbours: k of the density.
        reference: The last token of a cluster and the number of neighbours as in the authors' code; see `ppe`.
    """

    members: int = 8
    neighbours: int = 5
    reference: bool = False

    name: ClassVar[str] = "ppe-decoder"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Positional Preservation Embedding for Multimodal Large Language Models"
    paper: ClassVar[str] = "arXiv 2510.22936"

    def __post_init__(self) -> None:
        if not 1 <= self.members <= MOST_MEMBERS:
            raise FoveateError(f"ppe-decoder: members is between 1 and {MOST_MEMBERS}, not {self.members}.")
        if self.neighbours < 1:
            raise FoveateError(f"ppe-decoder: neighbours must be at least 1, not {self.neighbours}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers 11, 23 and 35 of 36."""
        scaled = {min(max(1, round(num_layers * layer / 36)), num_layers - 1) for layer in (11, 23, 35)}
        return tuple(sorted(scaled))

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        parts = layer_parts(tokens)
        shares = divide(count, [len(part) for part in parts])
        label = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
        firsts, positions = [], []
        for part, share in zip(parts, shares, strict=True):
            if not share:
                continue
            labels, members = clustered(
                tokens.features[part], share, self.members, self.neighbours, reference=self.reference
            )
            label[part] = labels + sum(map(len, firsts))
            firsts.append(part[members[:, 0]])
            positions.append(part[members])
        order = torch.cat(firsts).argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        assignment = torch.where(label >= 0, rank[label.clamp(min=0)], -1)
        merged = merge_tokens(tokens.features, torch.cat(firsts)[order], assignment)
        return Selection(
            merged.indices, merged.features, merged.assignment, merged.weights, torch.cat(positions)[order]
        )
