"""DyMU: thresholds at inference, their calibration, and the file that holds them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.bipartite import Tokens, match
from foveate.core.errors import FoveateError
from foveate.methods.encoder.dymu import Calibration, DyMU, Thresholds

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dymu.json").read_text())


def run(thresholds, cls, x, keys, reference=False):
    tokens = Tokens.start(x)
    for threshold, key in zip(thresholds, keys, strict=True):
        tokens = DyMU((0.0,), reference=reference).step(threshold, cls)(tokens, key)
    return tokens


@pytest.mark.parametrize("case", GOLDEN["single"], ids=range(len(GOLDEN["single"])))
def test_one_image_as_the_authors(case):
    keys = [torch.tensor(key) for key in case["keys"]]
    tokens = run(case["thresholds"], case["cls"], torch.tensor(case["x"]), keys, reference=True)
    assert tokens.source.tolist() == case["source"]
    assert tokens.size[..., 0].tolist() == case["size"]
    torch.testing.assert_close(tokens.x, torch.tensor(case["out"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", GOLDEN["calibration"], ids=range(len(GOLDEN["calibration"])))
def test_calibration_as_the_authors(case):
    tokens = Tokens.start(torch.tensor(case["x"]))
    for amount, keys, threshold in zip(case["amounts"], case["keys"], case["thresholds"], strict=True):
        block = Calibration(amount, case["cls"])
        tokens = block(tokens, torch.tensor(keys))
        assert block.threshold == pytest.approx(threshold, abs=1e-6)
    assert tokens.present.sum(1).tolist() == case["counts"]
    assert tokens.source.tolist() == case["source"]
    assert tokens.size[..., 0].tolist() == case["size"]
    # The authors divide by size + 0.0001.
    torch.testing.assert_close(tokens.x, torch.tensor(case["out"]), atol=1e-3, rtol=1e-3)


def test_the_threshold_is_the_mean_over_batches():
    block = Calibration(2, False)
    batches = [torch.randn(3, 12, 4) for _ in range(4)]
    expected = []
    for keys in batches:
        block(Tokens.start(keys), keys)
        scores = match(keys, cls=False).score.flatten().sort(descending=True).values
        expected.append(max(float(scores[2 * 3]), 0.0))  # the first that does not merge
    assert block.threshold == pytest.approx(sum(expected) / 4)
    assert Calibration(0, False).threshold == 1.0


def test_where_every_possible_pair_merges_the_threshold_is_none():
    """[CLS] and rows that an image lacks stand behind the last pair; without any the authors record its score."""
    keys = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).abs()  # cosines above 0
    block = Calibration(4, True)
    merged = block(Tokens.start(keys), keys)
    assert merged.present.sum(1).tolist() == [5, 5] and block.threshold == 0
    again = DyMU((0.5,)).step(block.threshold, True)(Tokens.start(keys), keys)
    assert torch.equal(again.source, merged.source)
    lacking = Tokens(keys, torch.ones(2, 9, 1).index_fill(1, torch.tensor([7, 8]), 0), Tokens.start(keys).source)
    block = Calibration(4, False)
    block(lacking, keys)
    assert block.threshold == 0
    block = Calibration(4, False)
    block(Tokens.start(keys[:, :8]), keys[:, :8])
    assert block.threshold == pytest.approx(float(match(keys[:, :8], cls=False).score.min()))


def loop(x, keys, threshold, cls):
    """One image: who goes where, and the mean of each row."""
    count = len(keys)
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    pairs = []
    for a in range(2 if cls else 0, count, 2):
        scores = [float(unit[a] @ unit[b]) for b in range(1, count, 2)]
        best = max(range(len(scores)), key=lambda b: (scores[b], -b))
        if scores[best] > threshold:
            pairs.append((scores[best], a, 2 * best + 1))
    pairs.sort(key=lambda pair: -pair[0])
    merges = {a: b for _, a, b in pairs[: (count - cls) // 2]}
    if not merges:
        return [[i] for i in range(count)], x
    rows = [[a] for a in range(0, count, 2) if a not in merges]
    rows += [[b, *(a for a in merges if merges[a] == b)] for b in range(1, count, 2)]
    return rows, torch.stack([x[row].mean(0) for row in rows])


@settings(max_examples=30)
@given(
    st.integers(2, 15),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
    st.sampled_from([-1.5, -1.0, 0.0, 0.4, 0.8, 1.0]),
)
def test_as_the_loop(count, cls, ties, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, count, 5, generator=generator)
    shape = (3, count, 1) if ties else (3, count, 3)
    keys = torch.randint(-1, 2, shape, generator=generator).float() if ties else torch.randn(shape, generator=generator)
    tokens = run([threshold], cls, x, [keys])
    for image in range(3):
        rows, features = loop(x[image], keys[image], threshold, cls)
        assert tokens.size[image, :, 0].tolist() == [len(row) for row in rows] + [0] * (tokens.x.shape[1] - len(rows))
        torch.testing.assert_close(tokens.x[image, : len(rows)], features)
        for place, row in enumerate(rows):
            assert (tokens.source[image, row] == place).all()


@settings(max_examples=30)
@given(st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_a_batch_is_its_images(cls, reference, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 17, 5, generator=generator)
    thresholds, keys = (0.4, 0.5, 0.3), []
    tokens = Tokens.start(x)
    for threshold in thresholds:
        keys.append(torch.randn(4, tokens.x.shape[1], 3, generator=generator))
        tokens = DyMU((0.0,), reference=reference).step(threshold, cls)(tokens, keys[-1])
    assert tokens.size.sum(1).flatten().tolist() == [17] * 4
    counts = tokens.present.sum(1).tolist()
    for image in range(4):
        single = Tokens.start(x[image : image + 1])
        for threshold, key in zip(thresholds, keys, strict=True):
            own = key[image : image + 1, : single.x.shape[1]]
            single = DyMU((0.0,), reference=reference).step(threshold, cls)(single, own)
        torch.testing.assert_close(single.x[0], tokens.x[image, : counts[image]])
        assert torch.equal(single.source[0], tokens.source[image])


def test_a_threshold_of_one_merges_nothing():
    assert DyMU((1.0, 1.0, 1.0)).steps(16, 3, cls=True) == (None,) * 3


def test_the_file(tmp_path):
    path = tmp_path / "thresholds.json"
    found = Thresholds((0.5, 0.75), "CLIPVisionModel", 576, 72, 128)
    found.save(path)
    assert Thresholds.load(path) == found
    assert DyMU(str(path)).values == (0.5, 0.75)
    assert hash(DyMU([0.5, 0.75])) == hash(DyMU((0.5, 0.75)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: DyMU(), "foveate train-method dymu"),
        (lambda path: DyMU((0.5, 0.5)).steps(16, 3, cls=True), "2 thresholds for the 3 blocks"),
        (lambda path: DyMU((0.5,) * 3).steps(16, 3, cls=True, count=4), "takes no budget"),
        (lambda path: DyMU(path / "none.json").values, "cannot read"),
        (lambda path: DyMU(path / "other.json").values, "holds no thresholds"),
    ],
)
def test_bad_input(make, message, tmp_path):
    (tmp_path / "other.json").write_text('{"format": "other"}')
    with pytest.raises(FoveateError, match=message):
        make(tmp_path)
