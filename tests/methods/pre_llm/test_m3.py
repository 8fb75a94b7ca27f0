"""M3, against the connector and against loops."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.plan import Plan
from foveate.core.tokens import Grid, VisualTokens
from foveate.methods.pre_llm.m3 import M3
from foveate.models.connectors import build_connector
from tests.models.llava.small_llava import small_batch, small_llava, small_processor


@pytest.mark.parametrize("count", [1, 9, 36, 144])
def test_lengths_of_the_paper_are_those_of_the_connector(count):
    torch.manual_seed(0)
    connector = build_connector("m3", 6, 10).eval()
    features = torch.randn(1, 576, 6)
    with torch.no_grad():
        expected, _ = connector(features, Grid(24, 24), count)
        selection = M3()(VisualTokens.of_grid(connector.project(features)[0], (24, 24)), count)
    torch.testing.assert_close(selection.features, expected[0])


def test_coarse_tokens_are_means_of_finer_ones():
    tokens = VisualTokens.of_grid(torch.randn(144, 4, generator=torch.Generator().manual_seed(0)), (12, 12))
    finer = M3()(tokens, 36)
    again = M3()(VisualTokens.of_grid(finer.features, (6, 6)), 9)
    torch.testing.assert_close(again.features, M3()(tokens, 9).features)
    torch.testing.assert_close(M3()(tokens, 1).features[0], tokens.features.mean(0))


@pytest.mark.parametrize("count", [9, 4, 1])
def test_a_plan_gives_the_logits_of_the_connector_at_that_length(count):
    whole, short = small_llava("m3"), small_llava("m3", tokens=count)
    short.load_state_dict(whole.state_dict())
    expected = short(**small_batch(small_processor("m3", tokens=count)))
    inputs = small_batch(small_processor("m3"))
    with foveate.compress(whole, f"m3:{count}"):
        found = whole(**inputs)
    torch.testing.assert_close(found.logits[:, -1], expected.logits[:, -1], atol=1e-4, rtol=1e-4)


def test_budgets_that_truncation_would_change_are_met():
    tokens = VisualTokens.of_grid(torch.randn(576, 4), (24, 24))
    for count in (2, 35, 100, 288):
        assert len(M3()(tokens, count)) == count


def test_its_name_in_plans():
    assert str(Plan.of("m3:36")) == "m3:36" and isinstance(Plan.of("m3:36").steps[0].method, M3)
