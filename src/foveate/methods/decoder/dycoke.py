"""DyCoke, second stage: a generated token attends to the cached image tokens that matter to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.in_attention import DecodeStepMethod, StepChoice


@dataclass(frozen=True)
class DyCokeDecoder(DecodeStepMethod):
    r"""Lets a generated token attend, from a layer on, only to the image tokens that the layer before attends to most.

    The attention of the generated token in the layer before, mean over heads, ranks the cached tokens of images; the
    share `prune` with the least is left out in this layer and all later ones. For the next token the choice stays if
    its attention is like this one (cosine of `similarity` or more), and is made anew otherwise, among all tokens: the
    cache keeps them (DyCoke, arXiv 2411.15024, dynamic pruning of the KV cache; the paper begins at layer 3, and the
    whole of it is `dycoke + dycoke-decoder`).

    `form="code"` does as the authors' code: where the attention is like that of the token before, the token attends to
    everything. Their code ranks the tokens of one clip and leaves nothing out where several tokens are read at once;
    here those of all images and clips of a prompt are ranked together, and every token after the prompt has its own
    choice, so that drafted tokens change nothing. For one token the chosen keys and values are copied, in the authors'
    code too: its attention reads less, and the cache takes the same memory.

    Args:
        prune: Share of the image tokens that a token ignores.
        similarity: Cosine of the attention of two tokens from which a choice stays.
        form: "paper" or "code".
    """

    prune: float = 0.7
    similarity: float = 0.9
    form: Literal["paper", "code"] = "paper"

    name: ClassVar[str] = "dycoke-decoder"
    mechanism: ClassVar = ("attention",)
    modality: ClassVar = ("video",)
    title: ClassVar[str] = "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2411.15024"

    def __post_init__(self) -> None:
        if not 0 <= self.prune <= 1:
            raise FoveateError(f"{self.name}: prune is a share, 0 to 1, not {self.prune}.")
        if not -1 <= self.similarity <= 1:
            raise FoveateError(f"{self.name}: similarity is a cosine, -1 to 1, not {self.similarity}.")
        if self.form not in ("paper", "code"):
            raise FoveateError(f'{self.name}: form is "paper" or "code", not {self.form!r}.')

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """From layer 3 on; the last one where there are fewer."""
        return tuple(range(max(1, min(3, num_layers - 1)), num_layers))

    def choose(self, attention: Tensor, previous: StepChoice | None) -> StepChoice:
        """See `DecodeStepMethod.choose`."""
        count = share_of(1 - self.prune, attention.shape[1], "down")
        best = attention.argsort(dim=1, descending=True, stable=True)[:, :count]
        attended = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, best, True)
        first = attention[:1] if previous is None else previous.attention[-1:]
        before = torch.cat([first, attention[:-1]])
        similar = F.cosine_similarity(attention, before, dim=1) >= self.similarity
        similar[0] &= previous is not None
        if self.form == "code":
            return StepChoice(attention, attended | similar[:, None])
        number = torch.arange(1, len(attention) + 1, device=attention.device)
        chosen = torch.where(similar, 0, number).cummax(dim=0).values  # 0: that of the text before
        earlier = attended[:1] if previous is None else previous.attended[-1:]
        return StepChoice(attention, torch.cat([earlier, attended])[chosen])
