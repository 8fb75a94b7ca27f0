"""VASparse: its maths against slow loops, and what a model does with it."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.methods.decoding import VASparse
from foveate.runtime.attention_functions import AttentionCall
from tests.families.zoo import zoo
from tests.methods.decoding.drafters import Guessing

FAMILIES = ("llava", "qwen2.5-vl", "llava-uhd")


def written(model, inputs, **options):
    with torch.no_grad():
        return model.generate(**inputs, do_sample=False, **{"max_new_tokens": 6, **options})


def test_scores_against_a_loop():
    attention, mass = torch.randn(5).softmax(dim=0), torch.rand(5)
    visible = torch.tensor([True, True, False, True, True])
    scores = VASparse(weight=3.0).scores(attention, mass, visible)
    shares = {i: float(mass[i].exp()) for i in range(5) if visible[i]}
    for i in range(5):
        if not visible[i]:
            assert scores[i] == -torch.inf
            continue
        assert float(scores[i]) == pytest.approx(float(attention[i]) + 3 * shares[i] / sum(shares.values()), rel=1e-5)
    plain = VASparse(weight=0.0).scores(attention, mass, visible)
    assert plain.topk(4).indices.tolist() == sorted(shares, key=lambda i: -float(attention[i]))


def test_the_visual_term_decides_what_stays():
    """Both terms are shares of the same tokens, so that attention to the image can outweigh attention received."""
    different = 0
    for draw in range(50):
        generator = torch.Generator().manual_seed(draw)
        attention = (2 * torch.randn(40, generator=generator)).softmax(dim=0)
        mass, visible = torch.rand(40, generator=generator), torch.ones(40, dtype=torch.bool)
        settings = [VASparse(keep=0.5, weight=weight) for weight in (0.0, 1.0)]
        without, with_saliency = (one.attended_tokens(one.scores(attention, mass, visible)) for one in settings)
        different += set(without.tolist()) != set(with_saliency.tolist())
        assert float(mass[with_saliency].mean()) >= float(mass[without].mean())
    assert different > 40


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_rest_on_the_attention_that_is_paid(name):
    """A token from which the query is turned away comes last, not first."""
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [[(4, 4)]])
    found, before = [], VASparse.scores

    def scores(self, attention, mass, visible):
        found.append((attention, mass, before(self, attention, mass, visible)))
        return found[-1][2]

    with pytest.MonkeyPatch.context() as patch, foveate.vasparse(model, VASparse(keep=0.5, contrast=0.0, weight=0.0)):
        patch.setattr(VASparse, "scores", scores)
        written(model, inputs)
    for attention, mass, score in found:
        assert float(attention.sum()) == pytest.approx(1, abs=1e-4)
        assert bool((mass <= 1 + 1e-5).all()) and torch.equal(score, attention)


def test_what_is_kept_and_what_the_branch_sees():
    scores = torch.tensor([5.0, 1.0, -torch.inf, 4.0, 3.0, 2.0, 0.0])
    assert VASparse(keep=0.5).attended_tokens(scores).tolist() == [0, 3, 6]
    assert VASparse(keep=1.0).attended_tokens(scores).tolist() == [0, 1, 3, 4, 5, 6]
    assert VASparse(keep=0.01).attended_tokens(scores).tolist() == [6]
    visual = torch.tensor([False, True, True, True, True, True, False])
    assert VASparse(mask=0.5).branch_tokens(scores, visual).tolist() == [0, 1, 5, 6]
    assert VASparse(mask=0.0).branch_tokens(scores, visual).tolist() == [0, 1, 3, 4, 5, 6]
    assert VASparse(mask=1.0).branch_tokens(scores, visual).tolist() == [0, 6]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_masked_and_no_contrast_is_the_model_alone(name):
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [[(4, 4)]])
    alone = written(model, inputs)
    before = dict(vars(model))
    with foveate.vasparse(model, VASparse(keep=1.0, contrast=0.0)):
        assert torch.equal(written(model, inputs), alone)
    assert vars(model).keys() == before.keys()
    assert torch.equal(written(model, inputs), alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_branch_through_all_layers_without_a_mask_is_the_model(name):
    """Logits - rate x logits: what is said shrinks, and its order stays."""
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [[(4, 4)]])
    layers = len(model.model.language_model.layers)
    options = {"return_dict_in_generate": True, "output_scores": True}
    alone = written(model, inputs, **options)
    with foveate.vasparse(model, VASparse(keep=1.0, contrast=0.25, mask=0.0, exit_layer=layers)):
        found = written(model, inputs, **options)
    assert torch.equal(found.sequences, alone.sequences)
    for one, other in zip(found.scores, alone.scores, strict=True):
        torch.testing.assert_close(one, 0.75 * other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_written_tokens_see_what_is_kept(name):
    """Every call of attention with fewer keys is the one with all keys and the others masked."""
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [[(4, 4)]])
    calls: list[tuple[int, torch.Tensor]] = []
    kept_before, attend_before, compared = VASparse.attended_tokens, AttentionCall.attend, []

    def kept(self, scores):
        calls.append((len(scores), kept_before(self, scores)))
        return calls[-1][1]

    def attend(self, **changed):
        found = attend_before(self, **changed)
        if "key" in changed:
            total, places = calls[-1]
            mask = torch.full((1, 1, 1, total), torch.finfo(torch.float32).min)
            mask[..., places] = 0
            torch.testing.assert_close(found[0], attend_before(self, mask=mask)[0])
            compared.append(changed["key"].shape[2])
        return found

    with pytest.MonkeyPatch.context() as patch, foveate.vasparse(model, VASparse(keep=0.3, contrast=0.0, weight=50.0)):
        patch.setattr(VASparse, "attended_tokens", kept)
        patch.setattr(AttentionCall, "attend", attend)
        output = written(model, inputs)
    length, layers = inputs["input_ids"].shape[1], len(model.model.language_model.layers)
    assert len(compared) == len(calls) == 5 * layers
    for number, (total, places) in enumerate(calls):
        assert total == length + 1 + number // layers
        assert len(places) == compared[number] == -int(-0.3 * total // 1) and places[-1] == total - 1
    assert not torch.equal(output, written(model, inputs))


def test_contrast_takes_away_what_is_said_without_the_image():
    model = zoo()["llava"].model()
    inputs = zoo()["llava"].prompts(model, [[(4, 4)]])
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 2}
    with foveate.vasparse(model, VASparse(keep=1.0, contrast=0.5, mask=1.0)) as handle:
        branch = []
        sparse = handle.sparse_logits
        handle.sparse_logits = lambda: branch.append(sparse()) or branch[-1]
        found = written(model, inputs, **options)
    for score, logits, said in zip(found.scores, found.logits, branch, strict=True):
        torch.testing.assert_close(score, logits - 0.5 * said)
    # By hand: the first layer, for the last token of the prompt, with the keys of text alone.
    text = model.model.language_model
    with torch.no_grad():
        ids = inputs["input_ids"]
        real = (ids[0] != model.config.image_token_index).nonzero().flatten()
        embeds = text.embed_tokens(ids[:, real])
        rotary = text.rotary_emb(embeds, real[None])
        mask = torch.full((len(real), len(real)), torch.finfo(torch.float32).min).triu(1)[None, None]
        hidden = text.layers[0](embeds, attention_mask=mask, position_embeddings=rotary)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        expected = model.lm_head(text.norm(hidden[:, -1]))
    torch.testing.assert_close(branch[0], expected, atol=1e-4, rtol=1e-4)


def test_text_alone_works():
    model = zoo()["qwen2.5-vl"].model()
    inputs = zoo()["qwen2.5-vl"].prompts(model, [[]])
    with foveate.vasparse(model):
        assert written(model, inputs).shape[1] == inputs["input_ids"].shape[1] + 6


@pytest.mark.parametrize(
    "wrong", [{"keep": 0.0}, {"keep": 1.1}, {"mask": -0.1}, {"weight": -1.0}, {"contrast": -1.0}, {"exit_layer": 0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(FoveateError):
        VASparse(**wrong)


def test_what_it_cannot_do_is_refused():
    model = zoo()["llava"].model()
    batch = zoo()["llava"].prompts(model, [[(4, 4)], [(4, 4)]])
    with foveate.vasparse(model):
        with pytest.raises(FoveateError, match="one conversation"):
            written(model, batch)
        with pytest.raises(FoveateError, match="attached"):
            foveate.vasparse(model)
        with pytest.raises(FoveateError, match="attached"):
            foveate.speculate(model, Guessing())
        with foveate.compress(model, "random:3"), pytest.raises(FoveateError, match="without one"):
            written(model, zoo()["llava"].prompts(model, [[(4, 4)]]))
    with foveate.speculate(model, Guessing()), pytest.raises(FoveateError, match="attached"):
        foveate.vasparse(model)
    with foveate.compress(model, "random:3"), pytest.raises(FoveateError, match="without one"):
        foveate.vasparse(model)
    with pytest.raises(FoveateError, match="exit_layer must be at most 2.*not 9"):
        foveate.vasparse(model, VASparse(exit_layer=9))
    with pytest.raises(FoveateError, match="attention in every layer"):
        foveate.vasparse(zoo()["qwen3.5"].model())
