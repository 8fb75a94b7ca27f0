"""CoreMatching against the paper's sets written out, and on live models against masked neurons."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import foveate
from foveate import FoveateError, compat
from foveate.methods.decoder.corematching import CoreMatching, above_elbow
from foveate.runtime.mlp_hooks import NeuronSlice
from foveate.testing.live import answers, logits
from tests.families.zoo import zoo
from tests.runtime.test_decoder_hooks import ROWS, deep, same_gradients

KINDS = ["llava", "qwen2.5-vl", "qwen3-vl", "gemma3", "glm-4v"]


def core_by_hand(activations: Tensor, active: float, neurons: float) -> list[int]:
    often = [0] * activations.shape[1]
    for token in activations.tolist():
        positive = sorted((value for value in token if value > 0), reverse=True)
        for value in positive[: math.ceil(active * len(positive))]:
            often[token.index(value)] += 1
    order = sorted(range(len(often)), key=lambda n: (-often[n], n))
    return sorted(order[: max(1, round(neurons * len(often)))])


@pytest.mark.parametrize("active", [0.1, 0.2, 0.5, 1])
@pytest.mark.parametrize("neurons", [0.01, 0.4, 1])
def test_core_neurons(active: float, neurons: float) -> None:
    activations = torch.randn(23, 17, generator=torch.Generator().manual_seed(0))
    activations[5] = -1  # a token without any
    found = CoreMatching(active, neurons).core(activations)
    assert found.tolist() == core_by_hand(activations, active, neurons)


def test_core_neurons_by_hand() -> None:
    activations = torch.tensor([[3.0, 2, 1, -1], [-1, 5, 4, -2], [-1, 1, -1, 2]])
    assert CoreMatching(active=0.5, neurons=0.5).core(activations).tolist() == [0, 1]
    assert CoreMatching(active=1, neurons=0.5).core(activations).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([10, 9, 8, 1, 1, 1], [0, 1, 2]),
        ([1, 10, 1, 9, 1, 8], [1, 3, 5]),
        ([10, 10, 10, 10, 1], [0, 1, 2, 3]),  # nothing is above: what is level with it
        ([4, 4, 4], [0, 1, 2]),
        ([7, 2], [0, 1]),
        ([7], [0]),
    ],
)
def test_the_elbow(scores: list[int], expected: list[int]) -> None:
    assert above_elbow(torch.tensor(scores)).tolist() == expected


def test_the_elbow_is_the_farthest_point_of_the_plane() -> None:
    scores = torch.randint(0, 30, (40,), generator=torch.Generator().manual_seed(3))
    ordered = sorted(scores.tolist(), reverse=True)
    run, rise = 39, ordered[-1] - ordered[0]
    far = [abs(rise * rank - run * (y - ordered[0])) / math.hypot(run, rise) for rank, y in enumerate(ordered)]
    elbow = ordered[max(range(40), key=lambda rank: far[rank])]
    assert above_elbow(scores).tolist() == [place for place, score in enumerate(scores.tolist()) if score > elbow]


@pytest.mark.parametrize("arguments", [{"active": 0}, {"neurons": 1.5}, {"neurons": float("nan")}])
def test_what_cannot_be_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(FoveateError, match="must be above 0 and at most 1"):
        CoreMatching(**arguments)


# On live models


def activations_of(model: Any, layer: int, recorded: list[Tensor]) -> Any:
    down = model.get_decoder().layers[layer].mlp.down_proj
    return down.register_forward_pre_hook(lambda _module, args: recorded.append(args[0].clone()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", ["", ":3"])
def test_the_tokens_are_those_of_the_activations(kind: str, budget: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((6, 8),),))
    recorded: list[Tensor] = []
    hook = activations_of(model, 1, recorded)
    with foveate.compress(model, f"corematching{budget}@2") as handle:
        logits(model, inputs)
        ((image,), count) = handle.report().images, 3
    hook.remove()
    ids = inputs["input_ids"][0]
    core = core_by_hand(recorded[0][0], 0.2, 0.4)
    (place,) = ((ids == token).nonzero().flatten() for token in ids.unique() if (ids == token).sum() == image.tokens_in)
    score = (recorded[0][0][place][:, core] > 0).sum(dim=1)
    expected = sorted(score.argsort(descending=True, stable=True)[:count].tolist()) if budget else above_elbow(score)
    assert image.layers[0].indices.tolist() == list(expected)
    assert 0 < image.layers[0].tokens_kept < image.tokens_in


@pytest.mark.parametrize("kind", KINDS)
def test_all_neurons_and_all_tokens_are_the_untouched_model(kind: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS)
    before = answers(model, inputs)
    with foveate.compress(model, "corematching(neurons=1):100%@2"):
        assert answers(model, inputs) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["corematching@2", "uniform:8 + corematching:50%@2,4", "fastv:6@1 + corematching@3"])
def test_written_text_uses_the_same_neurons_without_a_cache(
    kind: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS)
    calls: list[int] = []
    before = NeuronSlice.forward

    def forward(self: NeuronSlice, mlp: Any, hidden: Tensor) -> Tensor:
        calls.append(len(self.neurons))
        return before(self, mlp, hidden)

    monkeypatch.setattr(NeuronSlice, "forward", forward)
    with foveate.compress(model, plan):
        written = answers(model, inputs)
        assert calls and set(calls) == {round(0.4 * model.config.get_text_config().intermediate_size)}
        calls.clear()
        assert answers(model, inputs, use_cache=False) == written
        assert not calls
        assert answers(model, specimen.prompts(model, ROWS[:1]))[0] == written[0]
        if kind != "gemma3":  # six layers with windows and a static cache fail with any plan
            assert answers(model, inputs, cache_implementation="static") == written
        if kind != "glm-4v":  # whose beams without a cache are others with any plan
            beams = answers(model, inputs, num_beams=2)
            assert answers(model, inputs, num_beams=2, use_cache=False) == beams


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_token_costs_fewer_operations(kind: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((6, 8),),))
    text = model.config.get_text_config()

    def spent(plan: str) -> int:
        cache = DynamicCache(config=text)
        with foveate.compress(model, plan), torch.no_grad():
            model(**inputs, **compat.cache_argument(cache))
            with FlopCounterMode(display=False) as counter:
                model(input_ids=torch.tensor([[7]]), **compat.cache_argument(cache))
        return counter.get_total_flops()

    whole, sliced = (spent(f"corematching(neurons={share}):3@2") for share in (1, 0.4))
    # Three matrices in every layer from the one before the second on.
    neurons = text.intermediate_size
    saved = (neurons - round(0.4 * neurons)) * text.hidden_size * 3 * 2 * (text.num_hidden_layers - 1)
    assert whole - sliced == saved


def test_matrices_that_cannot_be_sliced_are_masked() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS)
    with foveate.compress(model, "corematching@2"):
        expected = answers(model, inputs)

    class Adapted(torch.nn.Linear):
        pass

    for layer in model.get_decoder().layers:
        layer.mlp.up_proj.__class__ = Adapted
    with foveate.compress(model, "corematching@2"):
        assert answers(model, inputs) == expected


def test_text_is_written_with_the_same_neurons_where_gradients_are_on() -> None:
    """A loop by hand often is outside of `no_grad`."""
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS)

    def words() -> Tensor:
        cache = DynamicCache(config=model.config.get_text_config())
        model(**inputs, **compat.cache_argument(cache))
        return model(input_ids=torch.tensor([[7], [8], [9]]), **compat.cache_argument(cache)).logits.detach()

    with foveate.compress(model, "corematching@2"):
        with torch.no_grad():
            expected = words()
        torch.testing.assert_close(words(), expected)


def test_a_second_turn() -> None:
    specimen, model = deep("llava")
    first, second = (specimen.prompts(model, ((size,),), seed=seed) for size, seed in (((3, 4), 0), ((4, 3), 5)))
    cache = DynamicCache(config=model.config.get_text_config())
    mask = torch.ones(1, first["input_ids"].shape[1] + second["input_ids"].shape[1], dtype=torch.int64)
    with torch.no_grad(), foveate.compress(model, "corematching:3@2"):
        model(**first, **compat.cache_argument(cache))
        kept: Any = cache
        before = kept.foveate_state.neurons[3][0].neurons
        model(**{**second, "attention_mask": mask}, **compat.cache_argument(cache))
        assert not torch.equal(kept.foveate_state.neurons[3][0].neurons, before)
        word = model(input_ids=torch.tensor([[7]]), **compat.cache_argument(cache))
    assert bool(word.logits.isfinite().all())


def test_gradients_with_and_without_checkpointing() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS, side="right")
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] >= 100), -100)
    same_gradients(model, {**inputs, "labels": labels}, "corematching@2")


def test_a_restored_model_is_as_it_was() -> None:
    specimen, model = deep("qwen3-vl")
    inputs = specimen.prompts(model, ROWS)
    before, written = logits(model, inputs), answers(model, inputs)
    names = {module: (sorted(vars(module)), len(module._forward_pre_hooks)) for module in model.modules()}
    with foveate.compress(model, "corematching@2"):
        assert answers(model, inputs) != written
    assert torch.equal(logits(model, inputs), before)
    assert answers(model, inputs) == written
    assert names == {module: (sorted(vars(module)), len(module._forward_pre_hooks)) for module in model.modules()}


def test_the_layer_of_the_paper() -> None:
    assert CoreMatching().layers(32) == (6,)
    assert CoreMatching().layers(2) == (1,)
    with pytest.raises(FoveateError, match="acts before layer 0"):
        foveate.compress(zoo()["llava"].model(), "corematching@0")
