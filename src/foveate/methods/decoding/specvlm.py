"""SpecVLM: an EAGLE-2 draft with an elastic compressor for images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.methods.decoding.compressor import BRANCHES, Compressor
from foveate.methods.decoding.draft import Draft, DraftConfig, DraftSession, Target, answer_loss, feature_loss, runs
from foveate.methods.decoding.tree import Shape, Tree, grow


@dataclass(frozen=True)
class SpecVLMConfig(DraftConfig):
    """Sizes of a SpecVLM draft.

    Args:
        compressor: "gate" lets the question choose one of `BRANCHES` for every conversation; "join" concatenates the
            results of all of them; or the name of one, always.
        prune: Tokens for each that random pruning keeps.
        pool: Tokens a mean.
        conv: Kernel and stride of the convolution.
        queries: Tokens of the resampler.
    """

    compressor: str = "gate"
    prune: int = 5
    pool: int = 5
    conv: int = 3
    queries: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compressor not in ("gate", "join", *BRANCHES):
            raise FoveateError(f"a compressor is gate, join, {', '.join(BRANCHES)}; not {self.compressor!r}.")
        for name in ("prune", "pool", "conv", "queries"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} of a draft must be 1 or more, not {getattr(self, name)}.")


class SpecVLM(Draft):
    r"""A draft of one decoder layer with EAGLE-2's tree, which reads images through an elastic compressor.

    "SpecVLM: Fast Speculative Decoding in Vision-Language Models" (Huang et al., arXiv 2509.11815); the authors' code
    was not available. Trained on-line by $0.1 \cdot \mathrm{CE}(draft, model) + \mathrm{SmoothL1}(\hat f, f)$. Tree: 10
    tokens after each, 60 in all, depth 7.

    Our choices, where the paper says little: the compressor works on the joined input (features and embeddings) of
    every run of image tokens by itself; ratios in the selecting mode are those of the fields; the gate reads the mean
    of the joined inputs of all text after the last image, and learns, besides the gradient of the drawn choice, from
    the losses L_b of the conversation under every branch b: $\sum_b p_b (L_b - \bar L)$, so that dropping the image,
    which leaves no token to carry a gradient, is judged like the others; embeddings and features get a LayerNorm each.
    """

    kind: ClassVar[str] = "specvlm"
    config_class: ClassVar[type[DraftConfig]] = SpecVLMConfig
    config: SpecVLMConfig

    def __init__(self, config: SpecVLMConfig) -> None:
        super().__init__(config)
        sizes = (config.prune, config.pool, config.conv, config.queries)
        self.compressor = Compressor(config.hidden_size, config.num_attention_heads, *sizes)

    def shorten(self, fused: Tensor, features: Tensor, visual: Tensor, generator: torch.Generator) -> Tensor:
        """See `Draft.shorten`."""
        weight: Tensor | int = 1
        if self.config.compressor == "gate":
            last = int(visual.nonzero()[-1]) + 1
            branch, weight = self.compressor.choose(fused[last:], generator)
            branches: tuple[str, ...] = (branch,)
        else:
            branches = BRANCHES if self.config.compressor == "join" else (self.config.compressor,)
        parts = []
        for is_image, part in runs(visual):
            if not is_image:
                parts.append(fused[part])
                continue
            parts += [weight * self.compressor.shorten(name, fused[part], generator) for name in branches]
        return torch.cat(parts)

    def choosing_loss(
        self, under: Callable[[str], Tensor], features: Tensor, following: Tensor, visual: Tensor
    ) -> Tensor | float:
        """See `Draft.choosing_loss`: the gate learns from the loss under every branch."""
        if self.config.compressor != "gate" or not bool(visual.any()):
            return 0.0
        dtype = self.fuse.weight.dtype
        last = int(visual.nonzero()[-1]) + 1
        with torch.no_grad():
            question = self.join(features.to(dtype), following.to(dtype))[last:]
            losses = []
            for branch in BRANCHES:
                self.compressor.forced_branch = branch
                try:
                    losses.append(under(branch).float())
                finally:
                    self.compressor.forced_branch = None
            stacked = torch.stack(losses)
        shares = self.compressor.gate(question.mean(dim=0)).float().softmax(dim=-1)
        return (shares * (stacked - stacked.mean())).sum()

    def loss(self, guessed: Tensor, features: Tensor, target: Target) -> tuple[Tensor, dict[str, float]]:
        """See `Draft.loss`."""
        distance, cross_entropy = feature_loss(guessed[:, 0], features), answer_loss(guessed[:, 0], features, target)
        return 0.1 * cross_entropy + distance, {
            "feature_loss": float(distance.detach()),
            "answer_loss": float(cross_entropy.detach()),
        }

    def propose(self, known: DraftSession, shape: Shape) -> Tree:
        """See `Session.propose`: every guessed feature is read as if it were the model's."""
        cache, target = known.cache, known.target
        past = int(cache.get_seq_length())
        features = known.guessed[:, 0]  # ty: ignore[not-subscriptable]
        device = features.device
        # Which of the tokens drafted so far each token of the last level attends to.
        visible = torch.zeros(1, 0, dtype=torch.bool, device=device)
        level = 0

        def advance(tokens: Tensor, before: Tensor) -> Tensor:
            nonlocal features, visible, level
            count = len(tokens)
            read = self.join(features[before], target.embed(tokens).to(features.dtype))
            visible = torch.cat([visible[before], torch.eye(count, dtype=torch.bool, device=device)], dim=1)
            everything = torch.cat([visible.new_ones(count, past), visible], dim=1)
            positions = torch.full((count,), past + level, device=device)
            features = self.guess(self.attend(read, cache, positions, everything))[:, 0]
            level += 1
            return target.log_probabilities(features)

        tree = grow(target.log_probabilities(features)[0], advance, shape)
        drafted = int(cache.get_seq_length()) - past
        if drafted:
            cache.crop(-drafted)
        return tree
