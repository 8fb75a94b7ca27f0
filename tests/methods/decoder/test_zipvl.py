"""ZipVL against the paper's rule written out, and on live models against masks and full caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import foveate
from foveate import FoveateError, compat
from foveate.core.in_attention import AttentionInputs
from foveate.kv_cache import MixedLayer
from foveate.kv_cache.nbytes import bytes_of
from foveate.methods.decoder.zipvl import ZipVL
from foveate.runtime.attention_functions import AttentionCall
from foveate.runtime.attention_hooks import AttentionHooks
from foveate.testing.live import answers, logits
from tests.families.zoo import zoo
from tests.runtime.test_decoder_hooks import ROWS, deep, same_gradients

KINDS = ["llava", "qwen2.5-vl", "qwen3-vl", "gemma3", "glm-4v"]
FULL = "zipvl(tau=0.8, high=16, low=16)"


def looking(count: int, seed: int = 0, padding: int = 0) -> AttentionInputs:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(heads, count + padding, 4, generator=generator) for heads in (2, 1))
    real = torch.arange(count + padding) >= padding
    allowed = torch.ones(len(real), len(real), dtype=torch.bool).tril() & real
    return AttentionInputs(2 * query, key, 1.0, allowed, real & (torch.arange(len(real)) % 2 == 0), real, 3, 8)


def by_hand(method: ZipVL, own: AttentionInputs, padding: int) -> set[int]:
    count = own.query.shape[1] - padding
    key = own.key.repeat(2, 1, 1)
    attention = (own.query @ key.transpose(1, 2)).masked_fill(~own.allowed, -torch.inf).softmax(dim=-1).mean(dim=0)
    rows = [int(row) + padding for row in method.probes(count, own.layer)]
    received = {j: sum(float(attention[i, j]) for i in rows) for j in range(padding, padding + count)}
    goal, total, needed = method.tau * sum(received.values()), 0.0, 0
    for value in sorted(received.values(), reverse=True):
        total, needed = total + value, needed + 1
        if total >= goal:
            break
    normalised = {j: value / max(sum(i >= j for i in rows), 1) for j, value in received.items()}
    last = padding + count - 1
    best = sorted((j for j in received if j != last), key=lambda j: -normalised[j])
    return {last, *best[: needed - 1]}


@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("count", "padding"), [(12, 0), (12, 3), (1, 0)])
def test_the_rule_of_the_paper(tau: float, count: int, padding: int) -> None:
    method = ZipVL(tau=tau, recent=3, sampled=4)
    own = looking(count, padding=padding)
    assert set(method.active_tokens(own).nonzero().flatten().tolist()) == by_hand(method, own, padding)


def test_tau_1_is_everything_and_more_tau_is_more() -> None:
    own = looking(40, padding=2)
    counts = [int(ZipVL(tau=tau, recent=8, sampled=8).active_tokens(own).sum()) for tau in (0.1, 0.5, 0.8, 0.95, 1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 40


def test_early_tokens_do_not_win_by_being_early() -> None:
    """The first token is all that the first ones can see; the late ones receive attention by choice."""
    key = torch.zeros(1, 12, 4)
    key[0, 8:11, 0] = 1
    query = torch.zeros(1, 12, 4)
    query[..., 0] = 3
    real = torch.ones(12, dtype=torch.bool)
    own = AttentionInputs(query, key, 1.0, torch.ones(12, 12, dtype=torch.bool).tril(), real, ~real, 0, 1)
    method = ZipVL(tau=0.5, recent=12)
    found = method.active_tokens(own)
    received = own.rows(torch.arange(12)).sum(dim=0)
    assert received[0] > received[8] > received[9]  # the plain sum would take the first token
    assert found.nonzero().flatten().tolist() == [8, 9, 11]


def test_probes() -> None:
    method = ZipVL(recent=4, sampled=3)
    assert method.probes(2, 0).tolist() == [0, 1]
    probes = method.probes(20, 0)
    assert probes[-4:].tolist() == [16, 17, 18, 19]
    assert len(set(probes.tolist())) == 7
    assert torch.equal(probes, method.probes(20, 0))
    assert not torch.equal(probes, ZipVL(recent=4, sampled=3, seed=1).probes(20, 0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"tau": 0}, "tau must be above 0"), ({"recent": 0}, "one recent probe"), ({"low": 3}, "1, 2, 4, 8 or all 16")],
)
def test_what_cannot_be_is_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        ZipVL(**arguments)  # ty: ignore[invalid-argument-type]


# On live models


@pytest.mark.parametrize("kind", KINDS)
def test_tau_1_changes_no_bit(kind: str) -> None:
    specimen = zoo()[kind]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), ROWS)
    before, written = logits(model, inputs), answers(model, inputs)
    with foveate.compress(model, "zipvl(tau=1, high=16, low=16)"):
        assert torch.equal(logits(model, inputs), before)
        assert answers(model, inputs) == written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_sparse_attention_is_masked_attention(kind: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered against the attention of all pairs, of which those with others are hidden."""
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS, side=side)
    kept: list[Tensor] = []
    before = AttentionHooks._attend_active

    def among(self: AttentionHooks, call: AttentionCall, allowed: Tensor, attends: Tensor, prompt: int) -> Tensor:
        found = before(self, call, allowed, attends, prompt)
        pairs = allowed & attends[:, None]
        expected = call.attend_pairs(pairs | ~pairs.any(dim=2, keepdim=True))[0] * attends[:, :, None, None]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        kept.append(attends.sum(dim=1))
        return found

    monkeypatch.setattr(AttentionHooks, "_attend_active", among)
    with foveate.compress(model, "zipvl(tau=0.8)"):
        logits(model, inputs)
    assert len(kept) == len(model.get_decoder().layers)
    assert len({tuple(counts.tolist()) for counts in kept}) > 1  # every layer has its own ratio


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [FULL, f"fastv:3@2 + {FULL}@1,3,4", f"uniform:8 + {FULL}@2"])
def test_what_the_prompt_decides_stays_decided(kind: str, plan: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS)
    with foveate.compress(model, plan):
        written = answers(model, inputs)
        assert answers(model, inputs, use_cache=False) == written
        assert answers(model, specimen.prompts(model, ROWS[:1]))[0] == written[0]
        if kind != "gemma3":  # six layers with windows and a static cache fail with any plan
            assert answers(model, inputs, cache_implementation="static") == written
        if kind != "glm-4v":  # whose beams without a cache are others with any plan
            beams = answers(model, inputs, num_beams=2)
            assert answers(model, inputs, num_beams=2, use_cache=False) == beams


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "qwen3-vl", "glm-4v"])
def test_the_cache_is_small_and_generation_reads_it(kind: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((12, 12),), ((3, 4),)))
    full, small = (DynamicCache(config=model.config.get_text_config()) for _ in range(2))
    with torch.no_grad():
        model(**inputs, **compat.cache_argument(full))
        with foveate.compress(model, "zipvl") as handle:
            model(**inputs, **compat.cache_argument(small))
            assert handle.report().kv_bytes == bytes_of(small)
            answers(model, inputs, num_beams=2)
    whole, held = bytes_of(full), bytes_of(small)
    assert whole is not None and held is not None
    assert held <= 0.55 * whole
    exact, layer = full.layers[0], small.layers[0]  # later ones have other inputs
    assert isinstance(layer, MixedLayer) and isinstance(exact, DynamicLayer)
    assert layer.get_seq_length() == exact.get_seq_length()
    keys, exact_keys = layer.keys, exact.keys
    assert keys is not None and exact_keys is not None
    real = inputs["attention_mask"].bool()
    found, expected = (part.transpose(1, 2)[real].flatten(1) for part in (keys, exact_keys))
    # Two bits: never more than half a step of a third of the range away.
    assert bool(((found - expected).abs() <= (expected.amax(dim=0) - expected.amin(dim=0)) / 6 + 1e-4).all())
    assert not torch.equal(found, expected)


def test_a_second_turn_with_another_image() -> None:
    specimen, model = deep("llava")
    first, second = (specimen.prompts(model, ((size,),), seed=seed) for size, seed in (((3, 4), 0), ((4, 3), 5)))
    cache = DynamicCache(config=model.config.get_text_config())
    mask = torch.ones(1, first["input_ids"].shape[1] + second["input_ids"].shape[1], dtype=torch.int64)
    with torch.no_grad(), foveate.compress(model, "zipvl(tau=0.8)"):
        model(**first, **compat.cache_argument(cache))
        word = model(input_ids=torch.tensor([[7]]), **compat.cache_argument(cache))
        cache.crop(-1)
        again = model(input_ids=torch.tensor([[7]]), **compat.cache_argument(cache))
        torch.testing.assert_close(word.logits, again.logits)
        cache.crop(-1)
        model(**{**second, "attention_mask": mask}, **compat.cache_argument(cache))
        assert [length for length, _ in cache.layers[0].chunks] == [  # ty: ignore[unresolved-attribute]
            first["input_ids"].shape[1],
            second["input_ids"].shape[1],
        ]
    # A cache outlives the plan.
    with torch.no_grad():
        assert bool(model(input_ids=torch.tensor([[7]]), **compat.cache_argument(cache)).logits.isfinite().all())


def test_gradients_with_and_without_checkpointing() -> None:
    specimen, model = deep("llava")
    inputs = specimen.prompts(model, ROWS, side="right")
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] >= 100), -100)
    same_gradients(model, {**inputs, "labels": labels, "use_cache": False}, "pyramiddrop:50%@2 + zipvl(tau=0.8)@1,3")


def test_a_restored_model_is_as_it_was() -> None:
    specimen, model = deep("qwen3-vl")
    inputs = specimen.prompts(model, ROWS)
    before = logits(model, inputs)
    configs = {module: id(module.config) for module in model.modules() if hasattr(module, "config")}
    hooks = {module: len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()}
    with foveate.compress(model, "zipvl(tau=0.8)"):
        assert not torch.equal(logits(model, inputs), before)
    assert torch.equal(logits(model, inputs), before)
    assert configs == {module: id(module.config) for module in model.modules() if hasattr(module, "config")}
    assert hooks == {module: len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()}


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "gemma3"])
@pytest.mark.parametrize("plan", ["zipvl(residual=2)", "fastv:3@2 + zipvl@1,3,4"])
def test_a_packed_cache_is_attended_to_as_if_it_were_read(
    kind: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, ROWS)
    asked: list[bool] = []
    attend = MixedLayer.attend

    def scores(apart: bool) -> torch.Tensor:
        def counted(self: MixedLayer, *args: Any) -> torch.Tensor | None:
            output = attend(self, *args)
            asked.append(output is not None)
            return output if apart else None

        monkeypatch.setattr(MixedLayer, "attend", counted)
        options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
        options["bad_words_ids"] = [[token] for token in range(100, 120)]
        with foveate.compress(model, plan):
            out = model.generate(**inputs, max_new_tokens=5, do_sample=False, **options)
        return torch.stack(out.logits)

    found, expected = scores(True), scores(False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if kind == "gemma3":  # all of its layers have a window, and such a cache keeps all bits
        assert not asked
    else:
        assert asked and all(asked)
