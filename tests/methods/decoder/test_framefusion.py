"""Both stages of FrameFusion against numbers of the authors' code, and the numbers of tokens that a cost means."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from foveate.core.attention import Attention
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import EarlierLayers, LayerTokens
from foveate.families.family import frame_crops
from foveate.methods.decoder.framefusion import FrameFusionDecoder
from foveate.methods.video.framefusion import FrameFusion
from foveate.runtime import compress
from foveate.testing.layer_tokens import changed, layer_tokens
from foveate.testing.live import logits
from tests.families.zoo import zoo
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "framefusion.json").read_text())


def before_layer(rows: torch.Tensor, kept: torch.Tensor, case: dict, read: list[int]) -> LayerTokens:
    """The tokens `kept` of a clip before a layer, whose earlier layers have read so many."""
    before, after = case["before"], case["after"]
    size = sum(len(crop.index) for crop in frame_crops(*case["clip"]))
    place = torch.full((size,), -1)
    place[kept] = torch.arange(len(kept))
    crops = tuple(replace(crop, index=place[crop.index]) for crop in frame_crops(*case["clip"]))
    columns = torch.cat([torch.arange(before), kept + before, torch.arange(before + size, before + size + after)])
    query, key = (torch.tensor(case[name])[:, columns] for name in ("query", "key"))
    attention = Attention(query, key, query.shape[-1] ** -0.5)
    tokens = changed(layer_tokens(len(kept), before, after), layout=lambda: crops, ask=lambda _: attention)
    earlier = EarlierLayers(made=size, read=tuple(read), acted=tuple(range(1, len(read))))
    return replace(tokens, features=rows, layer=len(read), num_layers=GOLDEN["layers"], earlier=earlier)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['clip']} {case['cost']}")
def test_equals_the_authors_code(case: dict) -> None:
    """Merging before the first layer, merging and dropping before later ones, and nothing after that."""
    arguments = case["cost"], case["threshold"]
    rows = torch.tensor(case["image"])
    kept, read = torch.arange(len(rows)), []
    for event, expected in enumerate(case["events"]):
        if event:
            rows = rows @ torch.tensor(case["mixes"][event - 1])
            chosen = FrameFusionDecoder(*arguments, case["least"])(before_layer(rows, kept, case, read), None)
        else:
            chosen = FrameFusion(*arguments)(clip_of(rows, case["clip"]), None)
        rows = rows[chosen.indices] if chosen.features is None else chosen.features
        kept = kept[chosen.indices]
        read.append(len(kept))
        assert kept.tolist() == expected["kept"]
        torch.testing.assert_close(rows, torch.tensor(expected["rows"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cost", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("threshold", [0.3, 0.9, 1.0])
def test_layers_read_what_the_cost_says(cost: float, threshold: float) -> None:
    """The mean over the layers of the tokens that are read, to a token, whatever the clip merges."""
    query, key = torch.randn(2, 2, 77, 4, generator=torch.Generator().manual_seed(0)).tolist()
    case = {"clip": (8, 3, 3), "before": 2, "after": 3, "query": query, "key": key}
    rows = moving((8, 3, 3), 6)
    chosen = FrameFusion(cost, threshold)(clip_of(rows, case["clip"]), None)
    read = [len(chosen)]
    rows, kept = chosen.apply(rows), chosen.indices
    for _ in range(1, GOLDEN["layers"]):
        chosen = FrameFusionDecoder(cost, threshold)(before_layer(rows, kept, case, read), None)
        rows, kept = chosen.apply(rows), kept[chosen.indices]
        read.append(len(kept))
    assert sum(read) / len(read) == pytest.approx(cost * 72, abs=1)


def test_a_clip_that_stands_still_is_one_frame() -> None:
    frame = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    selection = FrameFusion(cost=0.1)(clip_of(frame.repeat(4, 1), (4, 3, 4)), None)
    assert selection.indices.tolist() == list(range(12))
    torch.testing.assert_close(selection.features, frame)
    assert FrameFusion()(clip_of(frame.repeat(4, 1), (4, 3, 4)), 4).indices.tolist() == [1, 4, 7, 10]


@pytest.mark.parametrize("count", [9, 20, 40, 71])
def test_a_budget_merges_the_most_similar(count: int) -> None:
    rows = moving((8, 3, 3), 6)
    selection = FrameFusion()(clip_of(rows, (8, 3, 3)), count)
    frames = rows.view(8, 9, -1)
    pairs = torch.cosine_similarity(frames[1:], frames[:-1], dim=-1).flatten().argsort(descending=True)[: 72 - count]
    assert selection.indices.tolist() == sorted({*range(72)} - {int(pair) + 9 for pair in pairs})


def test_layers_of_a_model_read_what_the_cost_says() -> None:
    """Nothing is alike in random clips at this threshold: the first layers read all, and a layer drops."""
    config = copy.deepcopy(zoo()["qwen2.5-vl"].model().config)
    config.text_config.num_hidden_layers = 8
    config.text_config.layer_types = ["full_attention"] * 8
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    inputs = zoo()["qwen2.5-vl"].prompts(model, (((4, 2, 3),),))
    with compress(model, "framefusion(threshold=1) + framefusion-decoder(threshold=1, cost=0.5)") as handle:
        logits(model, inputs)
        (clip,) = handle.report().images
    read = [24] + [layer.tokens_kept for layer in clip.layers]
    assert read == [24, 24, 8, 8, 8, 8, 8, 8]


def test_arguments_that_mean_nothing() -> None:
    for arguments, message in [({"cost": 0}, "cost is a share"), ({"threshold": 2}, "threshold is a cosine")]:
        for method in (FrameFusion, FrameFusionDecoder):
            with pytest.raises(FoveateError, match=message):
                method(**arguments)
    with pytest.raises(FoveateError, match="least is a share"):
        FrameFusionDecoder(least=-0.1)
