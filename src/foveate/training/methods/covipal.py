"""CoViPAL's pruning modules (arXiv 2508.17243), which select the visual tokens that enter a decoder layer.

The first stage is supervised by attention: with A_k the attention from visual and later tokens to token k in a deeper
layer, mean over heads, the module's scores learn A / mean(A) by the mean squared error. The second is supervised by the
model's answers: the model reads a prompt once with all tokens, and once with every visual token k as visible as a gate
g_k in (0, 1) lets it be, log g_k added to the logits of all later attention to it; the loss is KL(all || gated) over
the tokens of the answer. The gradient goes through the gates into the modules alone.

That there are these two stages, the guiding layer and the squared error are the paper's. Its code and the details of
the second stage were not at hand. Choices of ours: the mean of A in the first; gates that are drawn,
g = sigmoid((S - t + noise) / temperature) with logistic noise and t such that a share r of the tokens is expected to
stay, r drawn anew for every prompt; the KL alone as loss; the parts that the stages have in a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.core.network_folder import save_networks
from foveate.methods.decoder import covipal
from foveate.methods.decoder.covipal import CoViPAL, Pruner
from foveate.training.examples import Example
from foveate.training.methods.shared.config import at_least_one, option
from foveate.training.methods.shared.layer_trainer import LayerTrainer
from foveate.training.methods.shared.loop import Losses
from foveate.training.methods.shared.questions import QuestionsConfig
from foveate.training.methods.shared.teacher_forcing import RecordedActivations, record, text_of

#: Smoothness of the gates; the nearer to 0, the nearer they are to 0 or 1.
TEMPERATURE = 0.5
#: Shares of tokens that gates let stay in training.
SHARES = (0.1, 0.6)


@dataclass(frozen=True, kw_only=True)
class CoViPALTrainConfig(QuestionsConfig):
    """Options of the modules' training."""

    layers: tuple[int, ...] | None = option(
        None, "Decoder layers before which tokens shall go, such as 2 or 2,8.", shown="2"
    )
    guided: float = option(
        0.3, "Part of the steps that learn a deeper layer's attention, 0 to 1; the rest learns answers.", minimum=0
    )
    draws: int = option(2, "Times that gates are drawn for a prompt while answers are learned.", minimum=1)
    width: int = option(128, "Width of the modules.", minimum=1)
    heads: int = option(4, "Heads of their attention.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guided <= 1:
            raise FoveateError(f"guided is a part of the steps, 0 to 1, not {self.guided}.")
        at_least_one(self, "draws", "width", "heads")


class CoViPALTrainer(LayerTrainer[CoViPALTrainConfig]):
    """Trains a module for each of some decoder layers.

    A module first learns the attention of a deeper layer, then to keep the answers of the full model.
    """

    name = CoViPAL.name
    config_class = CoViPALTrainConfig
    output = "covipal"
    examples = """
        foveate train-method covipal -o pruner --steps 150 --layers 2
        foveate train-method covipal --model Qwen/Qwen2.5-VL-3B-Instruct --data receipts.jsonl -o pruner
        foveate ask receipt.png "What is the total?" --plan "covipal(weights=pruner):25%@2"
        foveate train-method covipal --model my-model -o my-model/covipal
        foveate ask receipt.png "What is the total?" --model my-model --plan covipal:25%
    """

    def default_layers(self, count: int) -> tuple[int, ...]:
        """Those of a plan that says nothing."""
        return covipal.default_layers(count)

    def network(self, model: Any) -> nn.ModuleDict:
        """Modules with first weights, by layer as text."""
        config, size = self.config, model.get_input_embeddings().embedding_dim
        layers = self.layers(model)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(config.seed)
            return nn.ModuleDict({str(layer): Pruner(size, config.width, config.heads) for layer in layers})

    def step(self, model: Any, processor: Any, network: Any, data: Callable[[int], Example], step: int) -> Losses:
        """One loss a prompt: of the first stage or of the second."""
        config, layers = self.config, [int(layer) for layer in network]
        guided = step < config.guided * config.steps
        guide = guiding_layer(len(text_of(model).layers), layers) if guided else None
        for number in config.samples(step):

            def compute(number: int = number) -> Tensor:
                recorded = record(model, processor, data(number), layers, guide)
                if guided:
                    return guided_loss(network, recorded) / config.batch_size
                losses = [adapted_loss(network, model, recorded) for _ in range(config.draws)]
                return torch.stack(losses).mean() / config.batch_size

            yield config.seed * 1_000_003 + number, compute

    def save(self, network: nn.ModuleDict, output: Path) -> None:
        """Write trained modules to a folder that `covipal` reads."""
        networks: dict[int, Any] = {int(layer): pruner for layer, pruner in network.items()}
        size = next(iter(networks.values())).size
        built = {"size": size, "width": self.config.width, "heads": self.config.heads}
        save_networks(output, CoViPAL.name, networks, built)

    def plans(self, output: str, layers: Sequence[int]) -> list[str]:
        """At three budgets, next to random tokens and FastV at the same layers."""
        at = ",".join(map(str, layers))
        names = (f"covipal(weights={output!r})", "random-decoder", "fastv")
        return [f"{name}:{budget}@{at}" for budget in ("50%", "25%", "10%") for name in names]


def guiding_layer(count: int, layers: Sequence[int]) -> int:
    """The layer whose attention the first stage learns: 16 of 32, scaled; deeper than all that are pruned, if it can.

    Args:
        count: Layers of the language model.
        layers: Those that are pruned.
    """
    return min(max(round(count / 2), max(layers) + 1), count - 1)


def guided_loss(pruners: Mapping[str, Pruner] | nn.ModuleDict, recorded: RecordedActivations) -> Tensor:
    """Mean squared error of scores and attention received, mean over layers and images of a prompt."""
    assert recorded.attention is not None
    losses = []
    for layer, images in recorded.tokens.items():
        for tokens in images:
            scores = pruners[str(layer)](tokens.features, tokens.prompt.hidden[tokens.question])
            losses.append(F.mse_loss(scores, guidance(recorded, tokens)))
    return torch.stack(losses).mean()


def guidance(recorded: RecordedActivations, tokens: LayerTokens) -> Tensor:
    """Attention (N,) that an image's tokens receive from themselves and all after them, with mean 1."""
    assert recorded.attention is not None
    rows = torch.arange(int(tokens.indices[0]), recorded.attention.query.shape[1], device=tokens.device)
    received = recorded.attention.attention_received(rows, tokens.indices)
    return received / received.mean().clamp(min=torch.finfo(received.dtype).tiny)


def adapted_loss(pruners: Mapping[str, Pruner] | nn.ModuleDict, model: Any, recorded: RecordedActivations) -> Tensor:
    """KL of the answers with all tokens and with gated ones, mean over the tokens of the answer."""
    text, output = text_of(model), model.get_output_embeddings()
    share = math.exp(float(torch.empty(()).uniform_(*map(math.log, SHARES))))
    with gated(text, pruners, recorded.tokens, share):
        hidden = text(**recorded.call).last_hidden_state[0, recorded.rows]
    with torch.no_grad():
        full = output(recorded.hidden).float().log_softmax(dim=-1)
    return F.kl_div(output(hidden).float().log_softmax(dim=-1), full, log_target=True, reduction="batchmean")


def threshold(scores: Tensor, share: float) -> Tensor:
    """The t at which sum_k sigmoid(S_k - t) is `share` of the tokens; differentiable in the scores (N,)."""
    with torch.no_grad():
        low, high = scores.min() - 20, scores.max() + 20
        for _ in range(50):
            middle = (low + high) / 2
            more = (scores - middle).sigmoid().mean() > share
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        slope = (scores - middle).sigmoid()
        slope = slope * (1 - slope)
        slope = slope / slope.sum().clamp(min=torch.finfo(slope.dtype).tiny)
    return middle + (slope * (scores - scores.detach())).sum()


def log_gates(scores: Tensor, share: float, temperature: float = TEMPERATURE) -> Tensor:
    """Logarithms of gates (N,) that are drawn so that a `share` of the tokens is expected to stay."""
    noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6).logit()
    return F.logsigmoid((scores - threshold(scores, share) + noise) / temperature)


@contextmanager
def gated(
    text: Any, pruners: Mapping[str, Pruner] | nn.ModuleDict, tokens: Mapping[int, list[LayerTokens]], share: float
) -> Generator[None]:
    """Gate the visual tokens in calls of a language model with one prompt while the context is open.

    Gates of several layers multiply: what a layer lets pass the next one may still stop.

    Args:
        text: The language model.
        pruners: By layer, as text.
        tokens: The images of the prompt, by layer.
        share: See `log_gates`.

    Raises:
        FoveateError: its attention takes no masks that are added.
    """
    state: dict[str, Tensor] = {}

    def before(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if layer in tokens:
                bias = state.get("bias", hidden.new_zeros(hidden.shape[1], dtype=torch.float32))
                for image in tokens[layer]:
                    scores = pruners[str(layer)](hidden[0, image.indices], hidden[0, image.question])
                    bias = bias.index_add(0, image.indices, log_gates(scores, share))
                state["bias"] = bias
            return args, kwargs | {"attention_mask": _added(kwargs.get("attention_mask"), state["bias"], hidden)}

        return hook

    hooks = [
        layer.register_forward_pre_hook(before(number), with_kwargs=True)
        for number, layer in enumerate(text.layers)
        if number >= min(tokens)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _added(mask: Any, bias: Tensor, hidden: Tensor) -> Tensor:
    """A mask of any form with a bias of every key, as one that is added: (1, 1, L, L)."""
    least = torch.finfo(hidden.dtype).min
    if mask is None:
        mask = torch.ones(len(bias), len(bias), dtype=torch.bool, device=bias.device).tril()[None, None]
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise FoveateError("gates are added to masks, which this attention does not take; load the model with sdpa.")
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, least)
    return (mask + bias.to(mask)).clamp(min=least)
