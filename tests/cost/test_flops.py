"""Closed formulas: by hand, and against the counter on small models of all encoders."""

import pytest
import torch
import torch.nn.functional as F

from foveate.benchmark.competitors import COMPETITORS, Geometry
from foveate.cost import flops
from tests.benchmark.small_geometry import SMALL


def test_formulas_by_hand():
    assert flops.linear(3, 5, 7) == 2 * 3 * 5 * 7
    # Segments of 2 and 3 tokens, width 8: (4 + 9) pairs, two products of 8 multiply-adds each.
    assert flops.attention([2, 3], 8) == 13 * 2 * 2 * 8
    # 2 tokens, width 4, MLP 6: projections 2 * 2 * (3 * 16 + 16), attention 4 * 4 * 4, MLP 2 * 2 * (24 + 24).
    assert flops.block(2, [2], 4, 6) == 256 + 64 + 192
    assert flops.block(2, [2], 4, 6, gated=True) == 256 + 64 + 288
    # 8 tokens in two windows, width 2: own and second product for 8 tokens, the shared one for 2 windows.
    assert flops.content_adaptive_stage(8, 2) == 2 * 8 * 2 * 4 + 2 * 2 * 2 * 2


def test_vit_uhd_at_1024_pixels():
    """The quarters of the sequence, written out: 104 x 104 patches through 5 blocks, 2704 through 14, 676 through 8."""
    with torch.device("meta"):
        vit = COMPETITORS["vit-uhd"](Geometry(), "sdpa")
    assert (vit.side(1024), vit.patches(1024), vit.tokens(1024)) == (1040, 10816, 676)
    pairs = 5 * 10816**2 + 14 * 2704**2 + 8 * 676**2
    assert vit.full_attention_flops(1024) == 4 * 1152 * pairs
    tokens = 5 * 10816 + 14 * 2704 + 8 * 676
    blocks = 2 * tokens * (4 * 1152**2 + 2 * 1152 * 4304) + 4 * 1152 * pairs
    assert 0 < vit.flops(1024) - blocks < 0.03 * blocks  # patches, positions and stages


def test_fused_attention_is_counted_with_fewer_key_heads_too():
    query, key = torch.randn(2, 4, 10, 8), torch.randn(2, 2, 6, 8)
    counted = flops.count(lambda: F.scaled_dot_product_attention(query, key, key, enable_gqa=True))
    assert counted == 2 * 4 * 10 * 6 * 8 * 4


@pytest.mark.parametrize("pixels", [80, 170])
@pytest.mark.parametrize("name", list(COMPETITORS))
def test_formula_agrees_with_the_counter(name, pixels):
    competitor = COMPETITORS[name](SMALL, "sdpa")
    inputs = competitor.inputs(pixels, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        tokens = competitor.encode(**inputs)
        counted = flops.count(lambda: competitor.encode(**inputs))
        assert len(tokens) == competitor.tokens(pixels)
        assert competitor.connector(tokens).shape == (len(tokens), SMALL.text["hidden_size"])
        connected = flops.count(lambda: competitor.connector(tokens))
    assert abs(counted - competitor.flops(pixels)) <= 0.02 * counted
    assert connected == competitor.connector_flops(pixels)


def test_operations_of_every_module_are_counted():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 7))
    total, by_module = flops.count_modules(lambda: model(torch.ones(2, 3)))
    assert by_module["Sequential.0"] == flops.linear(2, 3, 5) and by_module["Sequential.1"] == flops.linear(2, 5, 7)
    assert total == by_module["Sequential"] == flops.count(lambda: model(torch.ones(2, 3)))
