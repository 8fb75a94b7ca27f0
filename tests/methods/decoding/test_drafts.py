"""The drafts: what they guess against slow loops, how they read images, their folders."""

from __future__ import annotations

import json

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.methods.decoding import Draft, Shape, Target, draft_kinds, load_draft
from foveate.methods.decoding.compressor import BRANCHES, Compressor
from foveate.methods.decoding.draft import runs
from foveate.methods.decoding.flash import Flash, FlashConfig, aligned
from foveate.methods.decoding.specvlm import SpecVLM, SpecVLMConfig
from tests.families.zoo import zoo

SIZES = {"hidden_size": 8, "vocab_size": 11, "num_attention_heads": 2, "intermediate_size": 12}


def draft_of(kind: type[Draft], **fields: object) -> Draft:
    draft = kind.new(kind.config_class(**SIZES, **fields)).eval()
    with torch.no_grad():  # large enough that every input matters
        for parameter in draft.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return draft


@pytest.fixture
def target() -> Target:
    generator = torch.Generator().manual_seed(1)
    table, head = torch.randn(11, 8, generator=generator), torch.randn(11, 8, generator=generator)
    return Target(lambda ids: table[ids], lambda features: features @ head.T)


def conversation(count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    visual = torch.zeros(count, dtype=torch.bool)
    visual[2:8] = True
    return torch.randn(count, 8, generator=generator), torch.randn(count, 8, generator=generator), visual


@torch.no_grad()
@pytest.mark.parametrize("compressor", ["gate", "join", *BRANCHES])
def test_a_drafted_tree_is_that_of_whole_passes(target, compressor):
    """Every node's tokens come from a pass, without a cache, over all that it follows: mask, positions and cache."""
    draft = draft_of(SpecVLM, compressor=compressor, prune=2, pool=2)
    features, following, visual = conversation()
    session = draft.session(target)
    session.extend(features[:9], following[:9], visual[:9])
    session.propose(Shape(3, 2, 5))  # leaves nothing behind
    session.extend(features[9:], following[9:], visual[9:])
    tree = session.propose(Shape(4, 3, 1000))
    assert len(tree) == 3 + 3 * 9
    children: dict[int, list[int]] = {}
    for place, parent in enumerate(tree.parents.tolist()):
        children.setdefault(parent, []).append(place)
    for parent, places in children.items():
        tokens, at = [], parent
        while at >= 0:
            tokens.insert(0, int(tree.tokens[at]))
            at = int(tree.parents[at])
        own, then = features, following
        for number in range(len(tokens) + 1):
            count = len(own)
            generator = torch.Generator().manual_seed(0)
            guessed = draft(own, then, torch.cat([visual, visual.new_zeros(count - 12)]), 9, generator)[-1:, 0]
            if number < len(tokens):
                own = torch.cat([own, guessed])
                then = torch.cat([then, target.embed(torch.tensor(tokens[number : number + 1]))])
        said = target.log_probabilities(guessed)[0]
        assert set(tree.tokens[places].tolist()) == set(said.topk(3).indices.tolist())


@torch.no_grad()
@pytest.mark.parametrize("kind", [SpecVLM, Flash])
def test_reading_bit_by_bit_is_reading_at_once(target, kind):
    draft = draft_of(kind, queries=3)
    features, following, visual = conversation()
    whole = draft(features, following, visual, 9, torch.Generator().manual_seed(0))
    session = draft.session(target)
    for place in (slice(0, 9), slice(9, 10), slice(10, 12)):
        session.extend(features[place], following[place], visual[place])
    torch.testing.assert_close(session.guessed, whole[-1:])
    assert whole.shape[1:] == (draft.guesses, 8)


@torch.no_grad()
def test_a_draft_looks_back_only(target):
    draft = draft_of(SpecVLM, compressor="pool")
    features, following, visual = conversation()
    one = draft(features, following, visual, 12, torch.Generator())
    features[-1, 0] += 1
    other = draft(features, following, visual, 12, torch.Generator())
    assert torch.equal(one[:-1], other[:-1]) and not torch.allclose(one[-1], other[-1])


def test_what_each_branch_leaves_of_an_image():
    compressor = Compressor(8, 2, prune=3, pool=3, conv=3, queries=2)
    tokens = torch.randn(10, 8)
    lengths = {}
    for branch in BRANCHES:
        short = compressor.shorten(branch, tokens, torch.Generator().manual_seed(0))
        lengths[branch] = len(short)
        assert short.shape[1] == 8
    assert lengths == {"prune": 4, "pool": 4, "conv": 4, "resample": 2, "text": 0}
    pooled = compressor.shorten("pool", tokens, torch.Generator())
    expected = torch.stack([tokens[0:3].mean(0), tokens[3:6].mean(0), tokens[6:9].mean(0), tokens[9]])
    torch.testing.assert_close(pooled, expected)
    # A fresh convolution is the mean, with the last token repeated.
    torch.testing.assert_close(compressor.shorten("conv", tokens, torch.Generator()), expected)
    kept = compressor.drawn(10, torch.Generator().manual_seed(5))
    assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == 4
    assert torch.equal(kept, compressor.drawn(10, torch.Generator().manual_seed(5)))


def test_the_gate_chooses_by_the_question_and_learns():
    compressor = Compressor(8, 2, 2, 2, 2, 2)
    with torch.no_grad():
        compressor.gate.weight.zero_()
        compressor.gate.weight[2, 0] = compressor.gate.weight[3, 1] = 5.0
    first, second = torch.zeros(3, 8), torch.zeros(3, 8)
    first[:, 0] = second[:, 1] = 1
    assert compressor.eval().choose(first, torch.Generator())[0] == "conv"
    assert compressor.choose(second, torch.Generator())[0] == "resample"
    drawn = {compressor.train().choose(0 * first, torch.Generator().manual_seed(n))[0] for n in range(40)}
    assert drawn == set(BRANCHES)
    _, weight = compressor.choose(first, torch.Generator().manual_seed(1))
    assert float(weight.detach()) == 1.0
    weight.backward()
    assert compressor.gate.weight.grad is not None and compressor.gate.weight.grad.abs().sum() > 0


def test_the_gate_learns_what_every_way_is_worth(target):
    """Its loss is by hand the expectation over the ways; two questions about one image get ways of their own."""
    draft = draft_of(SpecVLM, compressor="gate", prune=2, pool=2).train()
    features, following, visual = conversation()
    asked = []

    def under(way):
        asked.append((way, draft.compressor.forced_branch, draft.compressor.choose(features, torch.Generator())[0]))
        return torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0][BRANCHES.index(way)])

    loss = draft.choosing_loss(under, features, following, visual)
    assert asked == [(way, way, way) for way in BRANCHES] and draft.compressor.forced_branch is None
    question = draft.join(features, following)[int(visual.nonzero()[-1]) + 1 :].mean(dim=0)
    shares = draft.compressor.gate(question).softmax(dim=-1)
    torch.testing.assert_close(loss, (shares * (torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]) - 3)).sum())
    loss.backward()
    assert all(float(row.abs().sum()) > 0 for row in draft.compressor.gate.weight.grad)  # leaving it out too
    assert draft.fuse.weight.grad is None
    assert draft.choosing_loss(under, features, following, torch.zeros_like(visual)) == 0
    assert draft_of(SpecVLM, compressor="pool").choosing_loss(under, features, following, visual) == 0

    questions = [following, following.flip(0)]
    best = {0: "pool", 1: "text"}
    optimizer = torch.optim.Adam(draft.compressor.gate.parameters(), lr=0.05)
    for step in range(80):
        worth = best[step % 2]
        optimizer.zero_grad()
        draft.choosing_loss(
            lambda way, worth=worth: torch.tensor(float(way != worth)), features, questions[step % 2], visual
        ).backward()
        optimizer.step()
    draft.eval()
    for number, following in enumerate(questions):
        read = draft.join(features, following)[int(visual.nonzero()[-1]) + 1 :]
        assert draft.compressor.choose(read, torch.Generator())[0] == best[number]


@torch.no_grad()
def test_text_only_leaves_no_visual_token_in_the_cache_of_the_draft(target):
    features, following, visual = conversation()
    held = {}
    for compressor in ("text", "resample", "join"):
        session = draft_of(SpecVLM, compressor=compressor, prune=6, pool=6).session(target)
        session.extend(features, following, visual)
        held[compressor] = int(session.cache.get_seq_length())
    assert held == {"text": 6, "resample": 6 + 2, "join": 6 + 1 + 1 + 2 + 2}


@torch.no_grad()
def test_flash_compresses_features_by_learned_queries():
    draft = draft_of(Flash, queries=3)
    features = torch.randn(6, 8)
    slow = torch.stack(
        [
            sum(weight * row for weight, row in zip((query @ features.T).softmax(0), features, strict=True))
            for query in draft.queries
        ]
    )
    torch.testing.assert_close(draft.compress(features), slow)
    assert torch.equal(draft.compress(features[:3]), features[:3])
    _, following, visual = conversation()
    features, following = torch.randn(12, 8), torch.randn(12, 8)
    read = draft.read(features, following, visual, torch.Generator())
    joined = draft.join(features, following)
    assert len(read) == 2 + 3 + 4
    torch.testing.assert_close(read[2:5], draft.compress(features[2:8]))
    torch.testing.assert_close(read[:2], joined[:2])
    torch.testing.assert_close(read[5:], joined[8:])


def test_guesses_are_compared_with_the_features_they_are_of():
    """With feature t = t, slot i of position j is compared with j + i."""
    position, slot = aligned(4, 3)
    pairs = list(zip(position.tolist(), slot.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]
    draft = draft_of(Flash, guesses=3)
    features = torch.arange(4.0)[:, None].expand(-1, 8)
    right = torch.stack([torch.stack([torch.full((8,), float(j + i)) for i in range(3)]) for j in range(4)])
    right[3, 1:] = right[2, 2:] = 1e6  # behind the end
    flat = Target(lambda ids: torch.zeros(len(ids), 8), lambda f: f @ torch.zeros(8, 11))
    loss, parts = draft.loss(right, features, flat)
    assert parts["feature_loss"] == 0
    assert float(loss) == pytest.approx(0.1 * float(torch.log(torch.tensor(11.0))), rel=1e-5)


def test_the_loss_of_specvlm_by_hand(target):
    draft = draft_of(SpecVLM)
    guessed, features = torch.randn(3, 1, 8), torch.randn(3, 8)
    loss, _ = draft.loss(guessed, features, target)
    near = said = 0.0
    for row in range(3):
        for channel in range(8):
            gap = abs(float(guessed[row, 0, channel] - features[row, channel]))
            near += (0.5 * gap**2 if gap < 1 else gap - 0.5) / 24
        wanted, found = target.head(features[row]).softmax(-1), target.head(guessed[row, 0]).log_softmax(-1)
        said -= float((wanted * found).sum()) / 3
    assert float(loss) == pytest.approx(near + 0.1 * said, rel=1e-5)


def test_stretches_of_a_mask():
    visual = torch.tensor([True, True, False, True])
    assert runs(visual) == [(True, slice(0, 2)), (False, slice(2, 3)), (True, slice(3, 4))]


@pytest.mark.parametrize("kind", ["specvlm", "flash"])
@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "llava-uhd"])
def test_trained_kinds_write_what_the_model_writes(kind, name, tmp_path):
    model = zoo()[name].model()
    chosen = {"queries": 4} if kind == "flash" else {}
    cls = draft_kinds()[kind]
    cls.new(cls.config_class.of(model, **chosen)).save(tmp_path)
    for rows in ([[(4, 4), (2, 3)]], [[]]):
        inputs = zoo()[name].prompts(model, rows)
        alone = model.generate(**inputs, max_new_tokens=9, do_sample=False)
        for shape in ({}, {"top_k": 3, "tokens": 8, "depth": 3}):
            with foveate.speculate(model, tmp_path, **shape) as handle:
                assert torch.equal(model.generate(**inputs, max_new_tokens=9, do_sample=False), alone)
            assert handle.report().tokens == 9
            size = 8 if shape else {"specvlm": 60, "flash": 5}[kind]
            assert set(handle.report().drafted) == {size}


@pytest.mark.parametrize("kind", draft_kinds())
def test_folders_give_the_draft_back(kind, tmp_path):
    state = torch.get_rng_state()
    draft = draft_of(draft_kinds()[kind], seed=4)
    draft.save(tmp_path)
    again = load_draft(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert again.config == draft.config and not again.training
    for name, value in draft.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(FoveateError, match="holds no draft"):
        load_draft(tmp_path)
    draft_of(Flash).save(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    for change in ({"kind": "other"}, {"hidden_size": 16}, {"surprise": 1}, {"num_attention_heads": 3}, {"queries": 0}):
        (tmp_path / "config.json").write_text(json.dumps(document | change))
        with pytest.raises(FoveateError):
            load_draft(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FoveateError, match="cannot be read"):
        load_draft(tmp_path)


def test_a_draft_for_another_model_is_refused():
    model = zoo()["llava"].model()
    with pytest.raises(FoveateError, match="hidden_size 8, not 32"):
        foveate.speculate(model, draft_of(SpecVLM))


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (SpecVLMConfig, {"compressor": "zip"}),
        (SpecVLMConfig, {"prune": 0}),
        (FlashConfig, {"guesses": 0}),
        (FlashConfig, {"seed": -1}),
        (FlashConfig, {"queries": 1.5}),
    ],
)
def test_wrong_sizes_are_refused(config, fields):
    with pytest.raises(FoveateError):
        config(**SIZES, **fields)
