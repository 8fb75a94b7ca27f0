"""CMAI against the paper's sums written out, and on live models against masks made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate import FoveateError, compat
from foveate.core.in_attention import AttentionInputs
from foveate.core.plan import parse_plan
from foveate.cost.schedule import tokens_per_layer
from foveate.families import family_of
from foveate.methods.decoder.cmai import CMAI
from foveate.runtime.attention_functions import AttentionCall
from foveate.testing.live import answers, logits
from tests.families.zoo import zoo
from tests.runtime.test_decoder_hooks import ROWS, deep, same_gradients, text_of

KINDS = ["llava", "qwen2.5-vl", "qwen3-vl", "gemma3", "glm-4v"]
PLAN = "cmai(threshold=0.9)"


def looking(kinds: str, seed: int = 0, past: int = 0) -> AttentionInputs:
    """A sequence of image tokens (i), text (t) and padding (_), with two query heads for one key head."""
    generator = torch.Generator().manual_seed(seed)
    count = len(kinds)
    query, key = (torch.randn(heads, count, 4, generator=generator) for heads in (2, 1))
    padding = torch.tensor([kind == "_" for kind in kinds])
    allowed = torch.ones(count, count, dtype=torch.bool).tril() & ~padding
    visual, text = (torch.tensor([kind == which for kind in kinds]) for which in "it")
    return AttentionInputs(query[:, past:], key, 0.7, allowed[past:], visual, text, 0, 2)


def by_hand(kinds: str, whole: AttentionInputs, threshold: float) -> list[list[bool]]:
    """The same with loops over pairs."""
    count = len(kinds)

    def attention(row: int, column: int) -> float:
        total = 0.0
        for head in range(2):
            weights = {
                j: math.exp(float(whole.query[head, row] @ whole.key[0, j]) * 0.7)
                for j in range(row + 1)
                if kinds[j] != "_"
            }
            total += weights.get(column, 0.0) / sum(weights.values())
        return total / 2

    hidden = [[False] * count for _ in range(count)]
    for t in (place for place in range(count) if kinds[place] == "t"):
        images = [place for place in range(t) if kinds[place] == "i"]
        texts = [place for place in range(t + 1) if kinds[place] == "t"]
        focus = {i: sum(attention(t, s) * attention(s, i) for s in texts) for i in images}
        for i in images:
            hidden[t][i] = focus[i] < threshold * sum(focus.values()) / len(images)
    return hidden


@pytest.mark.parametrize("kinds", ["tiiitt", "__tiitiitt", "tttt", "iiit"])
def test_the_sums_of_the_paper(kinds: str) -> None:
    whole = looking(kinds)
    hidden, remembered = CMAI(0.9).attention_mask(whole, None)
    assert hidden.tolist() == by_hand(kinds, whole, 0.9)
    assert remembered.shape == (kinds.count("t"), kinds.count("i"))
    assert not CMAI(0).attention_mask(whole, None)[0].any()
    assert not hidden[[place for place, kind in enumerate(kinds) if kind != "t"]].any()


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_with_a_cache_the_rows_are_those_of_the_whole(cut: int) -> None:
    kinds = "tiititit"
    expected, remembered = CMAI(0.9).attention_mask(looking(kinds), None)
    first = looking(kinds)
    first = AttentionInputs(
        first.query[:, :cut],
        first.key[:, :cut],
        0.7,
        first.allowed[:cut, :cut],
        first.visual[:cut],
        first.text[:cut],
        0,
        2,
    )
    before = CMAI(0.9).attention_mask(first, None)[1]
    hidden, after = CMAI(0.9).attention_mask(looking(kinds, past=cut), before)
    assert torch.equal(hidden, expected[cut:])
    torch.testing.assert_close(after, remembered)


def test_a_pair_that_is_hidden_by_hand() -> None:
    """One text token that attends to the first image token alone, and one that attends to it alone."""
    key = torch.tensor([[[10.0, 0.0], [0.0, 0.0], [0.0, 10.0], [0.0, 0.0]]])
    query = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]])
    visual = torch.tensor([True, True, False, False])
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    hidden, _ = CMAI().attention_mask(AttentionInputs(query, key, 1.0, allowed, visual, ~visual, 0, 1), None)
    assert hidden.tolist() == [[False] * 4, [False] * 4, [False, True, False, False], [False, True, False, False]]


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_thresholds_that_mean_nothing(threshold: float) -> None:
    with pytest.raises(FoveateError, match="threshold must be 0 or more"):
        CMAI(threshold)


# On live models


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The pairs that every changed call of attention may see, as they come."""
    masks: list[Tensor] = []
    before = AttentionCall.attend_pairs

    def attend(self: AttentionCall, allowed: Tensor) -> Any:
        masks.append(self.allowed() & ~allowed)
        return before(self, allowed)

    monkeypatch.setattr(AttentionCall, "attend_pairs", attend)
    return masks


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_0_changes_no_bit(kind: str) -> None:
    specimen = zoo()[kind]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS)
    before = logits(model, inputs)
    with foveate.compress(model, "cmai(threshold=0)"):
        assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_images_and_of_padding_see_what_they_saw(kind: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo()[kind]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS, side=side)
    before = logits(model, inputs)
    hidden = counted(monkeypatch)
    last = len(text_of(model).layers) - 1
    with foveate.compress(model, f"{PLAN}@{last}"):
        found = logits(model, inputs)
    (pairs,) = hidden
    rows, columns = pairs.any(dim=2), pairs.any(dim=1)
    token = family_of(model).placeholder(family_of(model).core(model), "image")
    text = (inputs["attention_mask"] > 0) & (inputs["input_ids"] != token)
    assert bool(rows.any())
    assert not bool((rows & ~text).any())
    assert not bool((columns & text).any())
    # In the last layer a row that hides nothing is the full model's.
    torch.testing.assert_close(found[~rows], before[~rows], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[rows], before[rows], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [PLAN, "fastv:3@2 + cmai(threshold=0.9)@1,3,4", "uniform:8 + cmai(threshold=0.9)@2"])
def test_written_text_hides_what_it_would_hide_without_a_cache(
    kind: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS)
    hidden = counted(monkeypatch)
    with foveate.compress(model, plan):
        written = answers(model, inputs)
        assert any(pairs.shape[1] == 1 and bool(pairs.any()) for pairs in hidden)
        assert answers(model, inputs, use_cache=False) == written
        if kind != "gemma3":  # six layers with windows and a static cache fail with any plan
            assert answers(model, inputs, cache_implementation="static") == written
        assert answers(model, specimen.prompts(model, ROWS[:1]))[0] == written[0]
        if kind == "glm-4v":  # whose beams without a cache are others with any plan
            return
        beams = answers(model, inputs, num_beams=2)
        assert answers(model, inputs, num_beams=2, use_cache=False) == beams


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_a_second_turn_is_the_end_of_one_long_pass(kind: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((3, 4),),))
    more = torch.tensor([[5, 6, 7]])
    long = torch.cat([inputs["input_ids"], more], dim=1)
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in others:
            others[name] = torch.cat([others[name], torch.zeros_like(more)], dim=1)
    cache = DynamicCache(config=model.config.get_text_config())
    with foveate.compress(model, PLAN), torch.no_grad():
        whole = model(**others, input_ids=long, attention_mask=torch.ones_like(long)).logits
        model(**inputs, **compat.cache_argument(cache))
        for _ in range(1 if kind == "gemma3" else 2):  # a full window cannot be cropped
            rest = model(input_ids=more, attention_mask=torch.ones_like(long), **compat.cache_argument(cache)).logits
            torch.testing.assert_close(rest, whole[:, -3:], atol=1e-4, rtol=1e-4)
            if kind != "gemma3":
                cache.crop(-3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_says_the_same(implementation: str) -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS)
    with foveate.compress(model, PLAN):
        expected = logits(model, inputs)
    model.set_attn_implementation(implementation)
    with foveate.compress(model, PLAN):
        found = logits(model, inputs)
    real = inputs["attention_mask"] > 0
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


def test_gradients_with_and_without_checkpointing() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS, side="right")
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] >= 100), -100)
    same_gradients(model, {**inputs, "labels": labels}, "pyramiddrop:50%@2 + cmai(threshold=0.9)@1,3")


def test_a_restored_model_is_as_it_was() -> None:
    specimen, model = deep("qwen3-vl")
    inputs = specimen.prompts(model, ROWS)
    before = logits(model, inputs)
    names = {module: (sorted(vars(module)), len(module._forward_pre_hooks)) for module in model.modules()}
    configs = {module: id(module.config) for module in model.modules() if hasattr(module, "config")}
    with foveate.compress(model, PLAN + "@0,3"):
        assert not torch.equal(logits(model, inputs), before)
    assert torch.equal(logits(model, inputs), before)
    assert names == {module: (sorted(vars(module)), len(module._forward_pre_hooks)) for module in model.modules()}
    assert configs == {module: id(module.config) for module in model.modules() if hasattr(module, "config")}


def test_what_cannot_be_is_refused() -> None:
    model = zoo()["llava"].model()
    with pytest.raises(FoveateError, match=r"acts in layer 2; this language model has layers 0 to 1"):
        foveate.compress(model, "cmai@2")
    with pytest.raises(FoveateError, match=r"two steps of .* act in layer 1"):
        foveate.compress(model, "cmai@1 + cmai(threshold=0.1)@1")
    with pytest.raises(FoveateError, match="cmai takes no budget"):
        foveate.compress(model, "cmai:3@1")


def test_it_leaves_every_layer_its_tokens() -> None:
    assert tokens_per_layer(parse_plan("fastv:50%@2 + cmai").steps, 100, 4) == (100, 100, 50, 50)
