"""With any draft, a model writes what it writes alone."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, TextStreamer, cache_utils

import foveate
from foveate import FoveateError, compat
from foveate.families import families
from foveate.methods.decoding.draft import DraftSession
from foveate.methods.decoding.kinds import draft_kinds
from tests.families.zoo import conversation, zoo
from tests.methods.decoding.drafters import Guessing, Knowing

CHAIN = {"top_k": 1, "depth": 5, "tokens": 5}
#: Models that a tree cannot be verified by, because of windows.
WINDOWS = ("gemma3", "gemma4", "gemma4-e", "paligemma2")
REFUSED = {
    "gemma4-e": "DummyLayer",
    "qwen3.5": "LinearAttentionLayer",
    "minicpm-v-4.6": "LinearAttentionLayer",
}
# Layers that use keys and values of others have no place in the cache before transformers 5.23: they can go back.
if not hasattr(cache_utils, "DummyLayer"):
    REFUSED.pop("gemma4-e")
QUICK = ("llava", "qwen2.5-vl", "llava-uhd", "gemma3", "paligemma", "qwen3-vl")


def written(model, inputs, **options):
    with torch.no_grad():
        return model.generate(**inputs, do_sample=False, **{"max_new_tokens": 17, **options})


def after(inputs, output):
    return output[0, inputs["input_ids"].shape[1] :]


@pytest.fixture
def llava():
    specimen = zoo()["llava"]
    model = specimen.model()
    return model, specimen.prompts(model, [[(4, 4)]])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in zoo() if n not in REFUSED]
)
@pytest.mark.parametrize("rows", [[[(4, 4), (2, 3)]], [[]]], ids=["images", "text"])
def test_tokens_are_those_of_the_model_alone(name, rows):
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, rows) if rows[0] else conversation(rows, lambda size: [], 0, "left")
    alone = written(model, inputs)
    right = Knowing(after(inputs, alone))
    drafters = [(right, CHAIN), (Guessing(), {"top_k": 1, "tokens": 4})]
    if name not in WINDOWS:
        drafters += [(right, {"top_k": 2, "depth": 5}), (Guessing(), {"top_k": 3, "tokens": 9})]
    for drafter, shape in drafters:
        with foveate.speculate(model, drafter, **shape) as handle:
            assert torch.equal(written(model, inputs), alone)
        report = handle.report()
        assert report.tokens == 17 and report.passes == len(report.drafted) == len(report.accepted)
        if drafter is right:
            # One token of the prompt's pass, then five drafted ones and one of the model each: 1 + 6 + 6 + 4.
            assert (report.passes, report.accepted) == (3, (5, 5, 4))
            assert report.acceptance_length == pytest.approx(16 / 3)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_go_back_are_refused(name):
    model = zoo()[name].model()
    with foveate.speculate(model, Guessing(), top_k=1), pytest.raises(FoveateError, match=REFUSED[name]):
        written(model, zoo()[name].prompts(model, [[(4, 4)]]))


def test_a_tree_for_a_model_with_windows_is_refused():
    model = zoo()["gemma3"].model()
    with foveate.speculate(model, Guessing(), tokens=5), pytest.raises(FoveateError, match="top_k=1"):
        written(model, zoo()["gemma3"].prompts(model, [[(4, 4)]]))


def test_acceptance_by_hand(llava):
    """Two right tokens, then wrong ones: every pass writes two drafted tokens and one of the model's."""
    model, inputs = llava
    alone = written(model, inputs, max_new_tokens=8)
    absent = next(token for token in range(1, 100) if token not in alone)
    with foveate.speculate(model, Knowing(after(inputs, alone), absent, right=2), **CHAIN) as handle:
        assert torch.equal(written(model, inputs, max_new_tokens=8), alone)
    report = handle.report()
    # 1 token, then 3, 3, and the last one is drafted and right.
    assert report.accepted == (2, 2, 1) and report.drafted == (5, 4, 1)
    assert report.acceptance_length == pytest.approx(7 / 3)
    document = report.as_json()
    assert document["accepted"] == 5 and document["drafted"] == 10 and document["tokens"] == 8
    assert 0 <= report.draft_seconds <= report.seconds


@pytest.mark.parametrize("shape", [CHAIN, {"top_k": 2, "depth": 5}], ids=["chain", "tree"])
@pytest.mark.parametrize("place", range(1, 9))
def test_a_text_ends_within_an_accepted_run_where_it_ends_alone(llava, place, shape):
    """Several end tokens; the end lies at every place of a run."""
    model, inputs = llava
    free = after(inputs, written(model, inputs))
    ends = [int(free[place]), 111]
    alone = written(model, inputs, eos_token_id=ends)
    with foveate.speculate(model, Knowing(free), **shape) as handle:
        assert torch.equal(written(model, inputs, eos_token_id=ends), alone)
    assert len(after(inputs, alone)) == free.tolist().index(ends[0]) + 1 == handle.report().tokens


@pytest.mark.parametrize("count", range(1, 9))
def test_max_new_tokens_is_exact(llava, count):
    model, inputs = llava
    free = after(inputs, written(model, inputs))
    with foveate.speculate(model, Knowing(free), **CHAIN) as handle:
        assert torch.equal(after(inputs, written(model, inputs, max_new_tokens=count)), free[:count])
    assert handle.report().tokens == count and handle.report().passes == -(-(count - 1) // 6)


def test_processors_see_every_token_in_turn(llava):
    model, inputs = llava
    options = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    alone = written(model, inputs, **options)
    assert not torch.equal(alone, written(model, inputs))
    for drafter in (Knowing(after(inputs, alone)), Guessing()):
        with foveate.speculate(model, drafter, top_k=2, depth=5, tokens=9):
            assert torch.equal(written(model, inputs, **options), alone)


def test_a_streamer_gets_every_token(llava):
    model, inputs = llava
    alone = written(model, inputs)

    class Streamer(TextStreamer):
        def __init__(self):
            self.tokens, self.done = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.done = True

    streamer = Streamer()
    with foveate.speculate(model, Knowing(after(inputs, alone)), **CHAIN):
        written(model, inputs, streamer=streamer)
    assert streamer.tokens == alone[0].tolist() and streamer.done


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3"])
@pytest.mark.parametrize("right", [None, 2])
def test_the_cache_is_left_as_the_model_alone_leaves_it(name, right):
    """So that a conversation goes on with it."""
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [[(4, 4)]])
    caches = [DynamicCache(config=model.config.get_text_config()) for _ in range(2)]
    alone = written(model, inputs, max_new_tokens=9, **compat.cache_argument(caches[0]))
    shape = CHAIN if name == "gemma3" else {"top_k": 2, "depth": 5}
    with foveate.speculate(model, Knowing(after(inputs, alone), right=right), **shape):
        assert torch.equal(written(model, inputs, max_new_tokens=9, **compat.cache_argument(caches[1])), alone)
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == alone.shape[1] - 1
        if name != "gemma3":  # windows may hold more than they need
            for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
                assert torch.allclose(one.keys, other.keys, atol=1e-5)
        longer = {**inputs, "input_ids": torch.cat([alone, torch.tensor([[5, 6, 7]])], dim=1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        for types in ("mm_token_type_ids", "token_type_ids"):
            if types in inputs:
                added = inputs[types].new_zeros(1, alone.shape[1] + 3 - inputs[types].shape[1])
                longer[types] = torch.cat([inputs[types], added], dim=1)
        longer = {key: value for key, value in longer.items() if "pixel" not in key}
        with_draft = written(model, longer, max_new_tokens=9, **compat.cache_argument(caches[1]))
    assert torch.equal(with_draft, written(model, longer, max_new_tokens=9, **compat.cache_argument(caches[0])))


def test_left_padding_changes_nothing(llava):
    model, inputs = llava
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (3, 0))
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (3, 0))
    alone = written(model, padded)
    for drafter in (Knowing(after(padded, alone)), Guessing()):
        with foveate.speculate(model, drafter, top_k=2, depth=5, tokens=9):
            assert torch.equal(written(model, padded), alone)


def test_leaving_restores_the_model(llava):
    model, inputs = llava
    before = dict(vars(model))
    handle = foveate.speculate(model, Guessing())
    with pytest.raises(FoveateError, match="nothing has been generated"):
        handle.report()
    with pytest.raises(FoveateError, match="attached to this model already"):
        foveate.speculate(model, Guessing())
    handle.restore()
    handle.restore()
    assert vars(model).keys() == before.keys()
    assert not model.model.language_model._forward_hooks and not model.model.language_model._forward_pre_hooks
    written(model, inputs)
    assert not handle.reports


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True}, "greedy"),
        ({"num_beams": 2}, "greedy"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"cache_implementation": "static"}, "StaticCache"),
        ({"use_cache": False}, "not none"),
        ({"custom_generate": lambda *a: None}, "custom_generate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_draft_cannot_do_is_refused(llava, options, message):
    model, inputs = llava
    with foveate.speculate(model, Guessing()), pytest.raises(FoveateError, match=message):
        model.generate(**inputs, max_new_tokens=3, **options)


def test_batches_are_refused(llava):
    model, _ = llava
    batch = zoo()["llava"].prompts(model, [[(4, 4)], [(4, 4)]])
    with foveate.speculate(model, Guessing()), pytest.raises(FoveateError, match="not a batch of 2"):
        written(model, batch)


#: Before the language model, inside it, inside the encoder, several steps, merged tokens, positions counted anew.
BESIDE = (
    "divprune:3",
    "vmtc:3",
    "tome:50%",
    "fastv:3@1",
    "sparsevlm:3@1",
    "pool-decoder:50%@1",
    "vtw@1",
    "cmai",
    "divprune:5 + fastv:2@1",
)


@pytest.mark.parametrize("plan", BESIDE)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
        for n in zoo()
        if n not in (*REFUSED, *WINDOWS) and n != "kimi-k2.5"
    ],
)
def test_beside_a_plan_tokens_are_those_of_the_plan_alone(name, plan):
    """Whichever was attached first, whatever is guessed."""
    if plan.startswith("tome") and not families()[zoo()[name].family].patchwise:
        plan = "pool:50%"
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [[(4, 4), (2, 3)]])
    with foveate.compress(model, plan) as handle:
        alone = written(model, inputs)
        left = handle.report().tokens_left
    right = Knowing(after(inputs, alone))
    for drafter, shape in ((right, CHAIN), (Guessing(), {"top_k": 1, "tokens": 4})):
        with foveate.speculate(model, drafter, **shape) as draft, foveate.compress(model, plan) as handle:
            assert torch.equal(written(model, inputs), alone)
            assert handle.report().tokens_left == left
        with foveate.compress(model, plan), foveate.speculate(model, drafter, **shape) as draft:
            assert torch.equal(written(model, inputs), alone)
        if drafter is right:
            assert (draft.report().passes, draft.report().accepted) == (3, (5, 5, 4))
    assert "generate" not in vars(model)


@pytest.mark.parametrize("kind", ["specvlm", "flash"])
@pytest.mark.parametrize("plan", ["divprune:3", "vmtc:3", "fastv:3@1", "vtw@1"])
@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "llava-uhd"])
def test_trained_kinds_read_what_the_plan_left(kind, name, plan, tmp_path, monkeypatch):
    """A chain is drafted, and the draft learns of the tokens that came out of the last layer."""
    model = zoo()[name].model()
    cls = draft_kinds()[kind]
    cls.new(cls.config_class.of(model, **({"queries": 4} if kind == "flash" else {}))).save(tmp_path)
    inputs = zoo()[name].prompts(model, [[(4, 4)]])
    with foveate.compress(model, plan) as handle:
        alone = written(model, inputs)
        report = handle.report()
    read, before = [], DraftSession.extend

    def extend(self, features, following, visual):
        read.append((features, following, visual))
        return before(self, features, following, visual)

    monkeypatch.setattr(DraftSession, "extend", extend)
    with foveate.compress(model, plan), foveate.speculate(model, tmp_path) as draft:
        assert torch.equal(written(model, inputs), alone)
        assert all(count <= draft.chain.depth for count in draft.report().drafted)
    features, following, visual = read[0]
    assert len(features) == len(following) == len(visual)
    assert len(features) == inputs["input_ids"].shape[1] - report.tokens_in + report.tokens_left
    assert int(visual.sum()) == report.tokens_left
    embed = model.get_input_embeddings()
    torch.testing.assert_close(following[-1], embed(after(inputs, alone)[0]))
    torch.testing.assert_close(following[-2], embed(inputs["input_ids"][0, -1]))


def test_what_cannot_be_beside_a_plan_is_refused(llava):
    gemma = zoo()["gemma3"].model()
    windows = gemma, zoo()["gemma3"].prompts(gemma, [[(4, 4)]])
    for pair, plan, shape, words in (
        (llava, "divprune:3", {"tokens": 9}, "verified as a chain: leave top_k and tokens out"),
        (llava, "corematching@1", {"top_k": 1}, "depends on how many are read at a time"),
        (llava, "zipvl", {"top_k": 1}, "depends on how many are read at a time"),
        (
            windows,
            "divprune:3",
            {"top_k": 1},
            "which cannot be cropped under the plan .*; leave the draft or the plan out",
        ),
    ):
        model, inputs = pair
        attached = foveate.compress(model, plan), foveate.speculate(model, Guessing(), **shape)
        with attached[0], attached[1], pytest.raises(FoveateError, match=words):
            written(model, inputs)
