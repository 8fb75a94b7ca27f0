"""CoreMatching: tokens that activate the core neurons, and decoding with core neurons only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.core.in_mlp import NeuronMethod
from foveate.core.tokens import Selection, select_tokens, topk_indices

#: Entries of activations that are sorted at a time.
_BLOCK = 2**24


@dataclass(frozen=True)
class CoreMatching(NeuronMethod):
    r"""Keeps the tokens that activate most of the core neurons; the text is then generated with core neurons only.

    With the activations $z = \sigma(W_g x) \odot W_u x$ of an MLP, the neurons of a token are the share $\rho$ of its
    positive ones that are largest, and the core neurons C the share $\beta$ of all neurons that most tokens have among
    theirs. The score of an image token is $|\{n : z_n > 0\} \cap C|$. On the line from the first to the last point of
    (rank, sorted score), the point farthest from it is the elbow, and the tokens above the elbow's score go on. A
    budget takes that many instead.

    "CoreMatching: A Co-adaptive Sparse Inference Framework with Token and Neuron Pruning" (Wang et al., ICML 2025,
    arXiv 2505.19235). This is the paper's algorithm; the released code counts the neurons that a token has in common
    with one token of the prompt, zeroes cached keys, drops nothing and does not prune MLPs. Our choices: the shares are
    those of CoreInfer, which core neurons come from; one layer, where the code's begin, 6 of 32; MLPs before it are not
    pruned; where nothing is above the elbow, tokens at its score stay. Passes of several tokens without an image, such
    as a second question, use full MLPs. The copied weights take `neurons` of all MLPs' memory for every prompt of a
    batch; quantised and adapted MLPs are masked instead of sliced, which saves nothing.

    Args:
        active: $\rho$, above 0, up to 1.
        neurons: $\beta$, above 0, up to 1; 1 leaves MLPs as they are.
    """

    active: float = 0.2
    neurons: float = 0.4

    name: ClassVar[str] = "corematching"
    mechanism: ClassVar = ("query",)
    title: ClassVar[str] = "CoreMatching: Token and Neuron Pruning"
    paper: ClassVar[str] = "arXiv 2505.19235"
    budget: ClassVar = "optional"
    static_count: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, share in (("active", self.active), ("neurons", self.neurons)):
            if not 0 < share <= 1:
                raise FoveateError(f"corematching's {name} must be above 0 and at most 1, not {share}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 6 of 32."""
        return (min(max(1, round(6 / 32 * num_layers)), num_layers - 1),)

    def core(self, activations: Tensor) -> Tensor:
        """See `NeuronMethod.core`; of neurons that are equally frequent the first ones are taken."""
        size = activations.shape[1]
        often = torch.zeros(size, dtype=torch.int64, device=activations.device)
        for some in activations.split(max(1, _BLOCK // size)):
            largest = some.topk(max(1, share_of(self.active, size, "up")), dim=1).values
            # Never more than that many: the positive ones are at most all.
            count = share_of(self.active, (some > 0).sum(dim=1), "up")
            least = largest.gather(1, (count - 1).clamp(min=0)[:, None])
            often += ((some >= least) & (some > 0)).sum(dim=0)
        order = often.sort(descending=True, stable=True).indices
        return order[: max(1, share_of(self.neurons, size))].sort().values

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        activations, core = tokens.activations()
        score = (activations[:, core] > 0).sum(dim=1)
        return select_tokens(topk_indices(score.float(), count)) if count else Selection(above_elbow(score))


def above_elbow(scores: Tensor) -> Tensor:
    """Indices (k,) int64, ascending, of the scores (N,) above the elbow of their sorted curve; never none of N > 0."""
    ordered = scores.sort(descending=True).values.double()
    count = len(ordered)
    if count < 3:
        return torch.arange(count, device=scores.device)
    line = torch.linspace(0, 1, count, dtype=torch.float64, device=scores.device)
    # The distance from a straight line is proportional to the vertical one.
    elbow = ordered[(ordered - (ordered[0] + (ordered[-1] - ordered[0]) * line)).abs().argmax()]
    above = scores > elbow
    return (above if bool(above.any()) else scores >= elbow).nonzero().flatten()
