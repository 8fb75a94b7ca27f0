"""The Dynamic Pyramid Network's routers (arXiv 2503.20322), which choose the pooling windows of an image.

A prompt runs once with experts that are drawn at every pooling layer, and once more for every other expert of one of
these layers, the layers taking turns. With L_e the cross-entropy of the answer under expert e, the loss is
sum_e p_e L_e, the expected cross-entropy, and the routing loss next to it asks for wide windows.

The paper trains routers and language model together (`plan: dpn` in a stage of a recipe): its gradient reaches p
through tokens that are multiplied by p, which a model that does not learn cannot make up for. Here nothing is
multiplied, and the folder says so; the expectation over one layer is our choice in place of the factor, and so is the
expected speed in the routing loss: by the paper's, max p times the speed of its expert, a router that pools nothing is
never asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.network_folder import save_networks
from foveate.core.plan import Plan, Step
from foveate.core.tokens import Selection
from foveate.methods.decoder import dpn
from foveate.runtime import compress
from foveate.training.examples import Example
from foveate.training.methods.shared.config import option
from foveate.training.methods.shared.layer_trainer import LayerTrainer
from foveate.training.methods.shared.loop import Losses
from foveate.training.methods.shared.questions import QuestionsConfig
from foveate.training.methods.shared.teacher_forcing import RecordedActivations, encoding_once, record

#: Mean speed of experts (0, 1, 2 from the smallest window on) that the routing loss asks of a layer.
TARGET = 1.5
#: Weight of the routing loss in the authors' code.
PRESSURE = 0.001
#: What else pools or drops at the same layers.
CONTROLS = ("random-decoder", "pool-decoder")


@dataclass(frozen=True, kw_only=True)
class DPNTrainConfig(QuestionsConfig):
    """How routers are trained.

    The authors' pressure is so small that routers pool hardly more than the model bears; a larger one pools more.
    """

    layers: tuple[int, ...] | None = option(
        None, "Decoder layers before which images are pooled, such as 2 or 2,8.", shown="three in even steps"
    )
    pressure: float = option(
        PRESSURE, "Weight of the loss that asks for wide windows, next to the cross-entropy in nats a token.", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pressure >= 0:
            raise FoveateError(f"pressure must be 0 or more, not {self.pressure}.")


@dataclass(frozen=True)
class SampledExperts(DecoderMethod):
    """Pools by sampled or given experts, and records the routers' inputs.

    Args:
        routers: By layer, as text.
        experts: Which expert every layer takes; those that are not there are drawn and noted.
        contexts: What the routers read.
    """

    routers: nn.ModuleDict
    experts: dict[int, int] = field(default_factory=dict)
    contexts: dict[int, Tensor] = field(default_factory=dict)

    name: ClassVar[str] = "drawn"
    budget: ClassVar = "none"
    static_count: ClassVar[bool] = False
    positions: ClassVar = "contiguous"

    @property
    def arguments(self) -> dict[str, object]:
        """None that could be written."""
        return {}

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Those that have routers."""
        return tuple(int(layer) for layer in self.routers)

    @torch.no_grad()
    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        router: Any = self.routers[str(tokens.layer)]
        everything = Selection(torch.arange(len(tokens), device=tokens.device))
        if dpn.too_small(len(tokens), router.strides):
            return everything
        if tokens.layer not in self.contexts:
            self.contexts[tokens.layer] = dpn.context(tokens)
        if tokens.layer not in self.experts:
            shares = router(self.contexts[tokens.layer])
            self.experts[tokens.layer] = dpn.drawn(tokens, shares, router.strides)
        return dpn.pooled(tokens, router.strides[self.experts[tokens.layer]])


class DPNTrainer(LayerTrainer[DPNTrainConfig]):
    """Trains a router for each of some decoder layers: it learns which windows let the model answer."""

    name = dpn.DPN.name
    config_class = DPNTrainConfig
    output = "dpn"
    examples = """
        foveate train-method dpn -o routers --pressure 0.5
        foveate ask receipt.png "What is the total?" --plan "dpn(weights=routers)"
        foveate train-method dpn --model my-model --data receipts.jsonl -o my-model/dpn --layers 2
    """

    def default_layers(self, count: int) -> tuple[int, ...]:
        """Layers 8, 16 and 24 of 32, scaled to the model."""
        return dpn.default_layers(count)

    def network(self, model: Any) -> nn.ModuleDict:
        """Routers with first weights, by layer as text."""
        return first_routers(model, self.layers(model), self.config.seed)

    def step(self, model: Any, processor: Any, network: Any, data: Callable[[int], Example], step: int) -> Losses:
        """One loss for all prompts of the step: the routing loss is of their mean."""
        layers = [int(layer) for layer in network]

        def compute() -> Tensor:
            trials = [
                trial(model, network, record(model, processor, data(number), layers), layers[number % len(layers)])
                for number in self.config.samples(step)
            ]
            return batch_loss(network, trials, self.config.pressure)

        yield self.config.seed * 1_000_003 + step, compute

    def save(self, network: nn.ModuleDict, output: Path) -> None:
        """Write trained routers to a folder that `dpn` reads."""
        save(network, output, scaled=False)

    def plans(self, output: str, layers: Sequence[int]) -> list[str]:
        """Next to random tokens and means at the same layers."""
        at = ",".join(map(str, layers))
        return [f"dpn(weights={output!r})", *(f"{name}:{share}@{at}" for share in ("50%", "25%") for name in CONTROLS)]


@dataclass(frozen=True)
class Trial:
    """Losses of one prompt under every expert of a layer.

    Args:
        contexts: What the router of every layer read; those where the image was too small are not there.
        layer: The layer whose experts were tried.
        losses: (experts,) the cross-entropy of the answer under each; None where the image was too small.
    """

    contexts: dict[int, Tensor]
    layer: int
    losses: Tensor | None


@torch.no_grad()
def trial(model: Any, routers: nn.ModuleDict, recorded: RecordedActivations, layer: int) -> Trial:
    """Run a prompt under every expert of one layer, the others drawn.

    Args:
        model: Without a plan attached.
        routers: By layer, as text.
        recorded: The prompt with its answer.
        layer: Whose experts.
    """
    sampled = SampledExperts(routers)
    with ExitStack() as stack:
        stack.enter_context(encoding_once(model))
        loss = _cross_entropy(model, recorded, sampled)
        if layer not in sampled.experts:
            return Trial(sampled.contexts, layer, None)
        router: Any = routers[str(layer)]
        losses = []
        for expert in range(len(router.strides)):
            if expert == sampled.experts[layer]:
                losses.append(loss)
            else:
                other = replace(sampled, experts=sampled.experts | {layer: expert}, contexts={})
                losses.append(_cross_entropy(model, recorded, other))
    return Trial(sampled.contexts, layer, torch.stack(losses))


def _cross_entropy(model: Any, recorded: RecordedActivations, method: SampledExperts) -> Tensor:
    count = len(recorded.answer)
    labels = recorded.inputs["input_ids"].clone()
    labels[:, :-count] = -100
    with compress(model, Plan((Step(method),))):
        logits = model(**recorded.inputs, labels=labels, use_cache=False).logits
    return F.cross_entropy(logits[0, -count - 1 : -1].float(), recorded.answer)


def batch_loss(routers: nn.ModuleDict, trials: Sequence[Trial], pressure: float) -> Tensor:
    """Expected cross-entropy, mean over prompts, and the routing loss."""
    shares: dict[int, list[Tensor]] = {int(layer): [] for layer in routers}
    expected = []
    for result in trials:
        for layer, context in result.contexts.items():
            shares[layer].append(routers[str(layer)](context))
        if result.losses is not None:
            expected.append((shares[result.layer][-1] * result.losses).sum())
    zero = torch.stack([parameter.sum() for parameter in routers.parameters()]).sum() * 0
    loss = torch.stack(expected).mean() if expected else zero
    return (
        loss
        + pressure * routing_loss([torch.stack(layer_shares) for layer_shares in shares.values() if layer_shares])
        + zero
    )


def routing_loss(shares: Sequence[Tensor], expected: bool = True) -> Tensor:
    """Routing loss, which asks for more pooling: mean_l max(0, 1.5 - v_l).

    Args:
        shares: (samples, experts) probabilities of every pooling layer.
        expected: v is the mean over samples of sum_e p_e s_e, with speeds s = (0, 1, 2); else, as in the paper, that of
            s[argmax p] * max p.
    """
    if not shares:
        return torch.zeros(())
    losses = []
    for layer_shares in shares:
        speed = torch.arange(layer_shares.shape[1], device=layer_shares.device, dtype=layer_shares.dtype)
        best, place = layer_shares.max(dim=1)
        value = (layer_shares @ speed if expected else speed[place] * best).mean()
        losses.append((TARGET - value).clamp(min=0))
    return torch.stack(losses).mean()


def first_routers(model: Any, layers: Sequence[int], seed: int) -> nn.ModuleDict:
    """Routers with random weights, by layer as text."""
    size, strides = model.get_input_embeddings().embedding_dim, dpn.default_strides(layers)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return nn.ModuleDict({str(layer): dpn.Router(size, strides[layer]) for layer in layers})


def save(routers: nn.ModuleDict, output: Path, *, scaled: bool) -> None:
    """Write trained routers to a folder that `dpn` reads.

    Args:
        routers: By layer, as text.
        output: The folder.
        scaled: Whether they have learned with their model, by tokens that were multiplied by their probabilities.
    """
    networks: dict[int, Any] = {int(layer): router for layer, router in routers.items()}
    strides = {layer: list(router.strides) for layer, router in networks.items()}
    size = next(iter(networks.values())).size
    save_networks(output, dpn.DPN.name, networks, {"size": size, "strides": strides, "scaled": scaled})
