"""Compressed caches on a small model: identity at 100 %, bytes, what stays, chance, bad input."""

from __future__ import annotations

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.methods.kv_cache.base import Hack, Profile, RandomCache
from foveate.methods.kv_cache.hack import contextual_heads
from foveate.models.next_scale import calibrate, compress_cache
from tests.models.next_scale.small_next_scale import small_model

PLANS = ("hack:{}", "scalekv(window=1):{}", "random:{}", "recent:{}")
HISTORY = 1 + 4 + 9  # tokens before the last map
LAYERS, HEADS, WIDTH, ROWS = 3, 4, 4, 4  # two pictures with their unconditional halves


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def profile(model) -> Profile:
    return calibrate(model, 4)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("budget", ["100%", "14"])
def test_everything_kept_is_the_untouched_model(model, profile, plan: str, budget: str) -> None:
    ids = torch.randint(11, (2, 30))
    full, (logits, cache) = model.generate([0, 1], seed=2), model.score(torch.tensor([0, 1]), ids)
    with compress_cache(model, plan.format(budget), profile=profile) as handle:
        sample, (same, _) = model.generate([0, 1], seed=2), model.score(torch.tensor([0, 1]), ids)
        report = handle.report(sample.cache)
    assert torch.equal(same, logits)
    assert torch.equal(sample.pixel_values, full.pixel_values)
    assert torch.equal(sample.token_ids, full.token_ids)
    assert report["kept_bytes"] == full.cache.kept_bytes == 2 * cache.kept_bytes
    assert report["kept_bytes"] == HISTORY * LAYERS * HEADS * ROWS * WIDTH * 2 * 4


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("tokens", [4, 7, 11, 13])
def test_budgets_are_obeyed_to_the_byte(model, profile, plan: str, tokens: int) -> None:
    held: list[int] = []

    def look(cache, layer, queries) -> None:
        # Before map 4 is dropped: what every head holds of earlier maps.
        if cache.place == 3:
            held.extend(length - 16 for length in cache.layers[layer].lengths)

    with compress_cache(model, plan.format(tokens), profile=profile) as handle:
        sample = model.generate([0, 1], seed=2, observers=(look,))
        report = handle.report(sample.cache)
    last = report["maps"][2]
    assert sum(held) == sum(map(sum, last["kept"])) == tokens * LAYERS * HEADS
    # Keys, values, and where something is missing a position of 4 bytes.
    missing = sum(length for layer in last["kept"] for length in layer if length < HISTORY)
    assert last["bytes"] == ROWS * (tokens * LAYERS * HEADS * WIDTH * 2 * 4 + 4 * missing)
    for record in report["maps"][:3]:
        assert sum(map(sum, record["kept"])) <= tokens * LAYERS * HEADS
        assert record["bytes"] <= last["bytes"]
    assert report["maps"][3]["bytes"] == 0
    if tokens < 13:  # with heads this narrow the positions outweigh one token of 14
        assert report["peak_bytes"] < model.generate([0, 1], seed=2).cache.peak_bytes


def test_hack_gives_structural_heads_more_and_both_ends(model, profile) -> None:
    histories: dict[int, list[list[int]]] = {}

    def look(cache, layer, queries) -> None:
        if cache.place == 3:
            for group in cache.layers[layer].groups:
                for row, head in enumerate(group.heads):
                    rows = group.token_indices()[:, row].tolist()
                    histories[layer * HEADS + head] = [[place for place in own if place < HISTORY] for own in rows]

    plan = Plan.of(Hack(initial=0.25, recent=0.5, ratio=0.5), 6)
    with compress_cache(model, plan, profile=profile):
        model.generate([0, 1], observers=(look,))
    contextual = contextual_heads(profile.variance, 0.5).flatten().tolist()
    assert len(histories) == LAYERS * HEADS
    for head, rows in histories.items():
        for kept in rows:
            assert kept == sorted(set(kept))
            assert len(kept) == (4 if contextual[head] else 8)
            if not contextual[head]:
                assert kept[:2] == [0, 1] and kept[-4:] == [10, 11, 12, 13]


def test_all_contextual_is_one_budget(model, profile) -> None:
    with compress_cache(model, "hack(alpha=1.0):6", profile=profile) as handle:
        report = handle.report(model.generate([0]).cache)
    assert report["maps"][2]["kept"] == [[6] * HEADS] * LAYERS


def test_scalekv_differs_by_layer_and_keeps_its_window(model, profile) -> None:
    groups = []

    def look(cache, layer, queries) -> None:
        if cache.place == 3:
            groups.extend(cache.layers[layer].groups)

    with compress_cache(model, "scalekv(drafters=0.25, window=4):9", profile=profile) as handle:
        report = handle.report(model.generate([0, 1], observers=(look,)).cache)
    kept = report["maps"][2]["kept"]
    assert all(len(set(layer)) == 1 for layer in kept)
    assert len({layer[0] for layer in kept}) > 1
    # The centres of a 2 x 2 grid over the third map (3 x 3), whose first token is the fifth.
    window = {5 + row * 3 + column for row in (0, 2) for column in (0, 2)}
    for group in groups:
        for row in group.token_indices().flatten(0, 1).tolist():
            assert window <= set(row)


def test_profile_is_that_of_a_forward_pass(model, profile) -> None:
    """The calibration's attention, again from all maps at once."""
    sample = model.generate([0, 1, 2, 3], seed=0)
    weights: list[torch.Tensor] = []

    def attend(layer, q, k, v):
        own = (q @ k.transpose(2, 3) / 2).masked_fill(~mask, -torch.inf).softmax(dim=-1)
        weights.append(own)
        return own @ v

    from foveate.models.next_scale.modeling import block_causal_mask

    mask = block_causal_mask(model.config.scales)
    model._masked, restored = lambda maps: attend, model._masked
    try:
        labels = torch.tensor([0, 1, 2, 3, 5, 5, 5, 5])
        with torch.no_grad():
            model(labels, sample.token_ids.repeat(2, 1))
    finally:
        model._masked = restored
    for layer, own in enumerate(weights):
        variance = own[:, :, 14:].var(dim=2, unbiased=False).sum(dim=2).mean(dim=0)
        torch.testing.assert_close(profile.variance[layer], variance, atol=1e-5, rtol=1e-4)
        current = own[:, :, 5:14, 5:14].sum(dim=3).mean()
        torch.testing.assert_close(
            profile.selectivity[layer, 2], current * own[:, :, 5:14, :5].sum(dim=3).mean(), atol=1e-5, rtol=1e-4
        )
    assert profile.selectivity[:, 0].tolist() == [0.0] * LAYERS


def test_leaving_leaves_the_model_as_it_was(model, profile) -> None:
    before = model.generate([0, 1]).pixel_values
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FoveateError, match="classes are"), compress_cache(model, "hack:30%", profile=profile):
        model.generate([99])
    assert model.cache_policy is None
    assert torch.equal(model.generate([0, 1]).pixel_values, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_seed_decides_what_random_keeps(model, profile) -> None:
    ids = torch.randint(11, (1, 30))

    def logits(seed: int) -> torch.Tensor:
        with compress_cache(model, Plan.of(RandomCache(), 4), profile=profile, seed=seed):
            return model.score(torch.tensor([0]), ids)[0]

    state = torch.get_rng_state()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("hack", "needs a budget"),
        ("hack:0%", "not between 0"),
        ("hack:15", "more tokens than the 14"),
        ("fastv:50%", "possible are hack, scalekv, random, recent"),
        ("hack:50% + recent:50%", "one of hack"),
        ("hack(alpha=2):50%", "alpha must lie in 0 to 1"),
        ("hack(initial=0.7, recent=0.7):50%", "at most 1"),
        ("hack(observed=0):50%", "observed must be a whole number"),
        ("scalekv(window=5):50%", "square number"),
        ("scalekv(kernel=4):50%", "kernel must be odd"),
        ("scalekv(pooling=least):50%", "pooling is"),
        ("scalekv:50%", "fewer than its window of 16"),
        ("hack:50%@2", "not at decoder layers"),
        ("hack(ratio=0.1):2", "leaves contextual heads none"),
    ],
)
def test_plans_that_cannot_be_are_refused(model, profile, plan: str, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        compress_cache(model, plan, profile=profile)
    assert model.cache_policy is None


def test_what_cannot_be_done_twice_or_without_a_cache(model, profile) -> None:
    with compress_cache(model, "recent:30%", profile=profile) as handle:
        with pytest.raises(FoveateError, match="compressed already"):
            compress_cache(model, "recent:30%", profile=profile)
        with pytest.raises(FoveateError, match="has no cache"):
            handle.report(model.generate([0], use_cache=False).cache)
    with pytest.raises(FoveateError, match="1 or more pictures"):
        calibrate(model, 0)
    with pytest.raises(FoveateError, match="other maps"):
        compress_cache(small_model(num_hidden_layers=2), "hack:30%", profile=profile)
