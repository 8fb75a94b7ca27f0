"""Rewards and advantages: the tables of the papers, and numbers that the authors' functions returned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate import FoveateError
from foveate.training.grpo import q_insight
from foveate.training.grpo.advantages import dtpo_advantages, group_advantages, informative, turn_weights
from foveate.training.grpo.rewards import (
    accuracy_rewards,
    area_penalties,
    calls_tool,
    format_rewards,
    outcome_rewards,
    tool_rewards,
)

GOLDEN = Path(__file__).parents[2] / "golden"
AUTHORS = json.loads((GOLDEN / "acquisition.json").read_text(encoding="utf-8"))
QUALITY = json.loads((GOLDEN / "q_insight.json").read_text(encoding="utf-8"))["texts"]

DIRECT = ["<think>a</think><answer>7</answer>"]
CALLED = ['<think>b</think><tool_call>{"name": "t", "arguments": {}}</tool_call>', *DIRECT]


@pytest.mark.parametrize("case", AUTHORS["formats"], ids=lambda case: repr(case["turns"])[:60])
def test_formats_and_calls_are_those_of_the_authors(case) -> None:
    turns = case["turns"]
    assert format_rewards([turns], balanced_tags=False).tolist() == [case["visionthink"][0]]
    assert format_rewards([turns]).tolist() == [case["adaptvision"][0]]
    assert calls_tool(turns) == bool(case["visionthink"][1])


def test_the_table_of_visionthink() -> None:
    # Right directly 1.5, right with the tool 1.4, wrong but well formed 0.5, wrong and ill formed 0.
    assert outcome_rewards([DIRECT, CALLED, DIRECT, ["7"]], [True, True, False, False]).tolist() == pytest.approx(
        [1.5, 1.4, 0.5, 0.0]
    )
    # One of six right answers is direct: it is lucky.
    assert outcome_rewards([DIRECT, *[CALLED] * 5], [True] * 6).tolist() == pytest.approx([1.4] * 6)
    # No right answer is direct, or wrong direct ones only: nothing changes.
    assert outcome_rewards([DIRECT, *[CALLED] * 5], [False, *[True] * 5]).tolist() == pytest.approx([0.5, *[1.4] * 5])


def test_the_control_begins_below_its_share() -> None:
    fifth = [DIRECT, *[CALLED] * 4]
    assert accuracy_rewards(fifth, [True] * 5)[0] == 1  # exactly a fifth
    assert accuracy_rewards(fifth, [True] * 5, share_epsilon=1e-4)[0] == pytest.approx(0.9)  # as in the authors' code
    assert accuracy_rewards([DIRECT, *[CALLED] * 9], [True] * 10, direct_share=0.0)[0] == 1
    with pytest.raises(FoveateError, match="there are 1 rollouts, and 2 of them"):
        accuracy_rewards([DIRECT], [True, False])


def test_the_tool_rewards_of_adaptvision() -> None:
    areas = torch.tensor([0.1, 0.2, 0.6, 0.9, 0.0, 0.5])
    valid = torch.tensor([True, True, True, False, False, True])
    correct = torch.tensor([True, True, True, True, True, False])
    # The mean of the right and valid ones is 0.3; twice as much and more counts 1.
    assert area_penalties(areas, valid, correct).tolist() == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-6)
    areas[2] = 0.42
    assert area_penalties(areas, valid, correct)[2] == pytest.approx(0.42 / 0.24 - 1, abs=1e-6)
    assert tool_rewards(areas, valid, correct).tolist() == pytest.approx(
        [0.1, 0.1, 0.1 - 0.2 * 0.75, 0.0, 0.0, 0.1], abs=1e-6
    )
    assert area_penalties(areas, valid, torch.zeros(6)).tolist() == [0] * 6


def naive_area(areas, valid, correct):
    """The equation of the paper, rollout by rollout."""
    chosen = [a for a, v, c in zip(areas, valid, correct, strict=True) if v and c]
    mean = sum(chosen) / len(chosen) if chosen else 1
    return [min(max(a / mean - 1, 0), 1) if v and c else 0.0 for a, v, c in zip(areas, valid, correct, strict=True)]


def test_the_area_term_is_that_of_the_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        areas = torch.rand(8, generator=generator) + 0.01
        valid, correct = torch.rand(2, 8, generator=generator) > 0.4
        expected = naive_area(areas.tolist(), valid.tolist(), correct.tolist())
        assert area_penalties(areas, valid, correct).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("case", AUTHORS["dtpo"], ids=["4x2", "3x3", "8x1"])
def test_advantages_and_loss_are_those_of_the_authors(case) -> None:
    turns, group = torch.tensor(case["turns"]), case["group"]
    tool, outcome = torch.tensor(case["tool"]), torch.tensor(case["outcome"])
    expected = torch.tensor(case["advantages"])
    advantages = dtpo_advantages(tool, outcome, turns, group)
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        group_advantages(outcome, group)[:, None] * (turns > 0), torch.tensor(case["grpo"]), atol=1e-5, rtol=1e-4
    )
    # The trainer's loss: the mean over all written tokens of the clipped loss, with weights in the advantages.
    weighted = advantages * turn_weights(turns)
    ratio = (torch.tensor(case["new"]) - torch.tensor(case["old"])).exp()
    loss = -torch.min(ratio * weighted, ratio.clamp(0.8, 1.24) * weighted)
    written = turns > 0
    assert float((loss * written).sum() / written.sum()) == pytest.approx(case["loss"], rel=1e-4, abs=1e-6)


def test_identities_of_dtpo() -> None:
    turns = torch.tensor([[1, 1, 0, 2], [1, 0, 2, 0], [1, 1, 1, 0], [1, 0, 2, 2]])
    tool, outcome = torch.tensor([0.1, -0.1, 0.0, 0.1]), torch.tensor([1.5, 0.5, 1.4, 0.0])
    plain = group_advantages(outcome, 4)[:, None] * (turns > 0)
    torch.testing.assert_close(dtpo_advantages(tool, outcome, turns, 4, tool_weight=0), plain)
    torch.testing.assert_close(dtpo_advantages(torch.full((4,), 0.1), outcome, turns, 4), plain)
    # One turn only: the weights are 1, and the loss that of GRPO.
    assert turn_weights((turns == 1).long()).unique().tolist() == [0, 1]
    weights = turn_weights(turns)
    first = (turns == 1) & (turns.amax(1, keepdim=True) == 2)
    written = int((turns > 0).sum())
    assert float(weights[first].sum()) / written == pytest.approx(0.5)
    assert float(weights[(turns > 0) & ~first].sum()) / written == pytest.approx(1)


def test_groups() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert informative(rewards, 2).tolist() == [False, False, True, True]
    assert group_advantages(rewards, 2).tolist() == pytest.approx([0, 0, -(0.5**0.5), 0.5**0.5], abs=1e-5)
    assert group_advantages(rewards, 1).tolist() == pytest.approx(rewards.tolist(), abs=1e-5)
    assert informative(rewards, 1).all()
    with pytest.raises(FoveateError, match="4 rewards cannot be divided into groups of 3"):
        group_advantages(rewards, 3)


@pytest.mark.parametrize("case", QUALITY, ids=lambda case: repr(case["text"])[:70])
def test_rewards_of_q_insight_are_those_of_the_authors(case) -> None:
    text = [case["text"]]
    assert q_insight.format_rewards(text, newlines=True).tolist() == [case["format"]]
    assert q_insight.format_rewards(text, newlines=True, as_json=False).tolist() == [case["format_comparison"]]
    if '"a": {' not in case["text"]:  # there their regular expression finds a rating inside of something else
        assert q_insight.score_rewards(text, [3.0]).tolist() == [case["score"]]
    assert q_insight.degradation_rewards(text, ["blur"], ["slight"]).tolist() == [case["degradation"]]
    assert q_insight.degradation_rewards(text, ["null"], ["null"]).tolist() == [case["none"]]
    assert q_insight.comparison_rewards(text, ["Image A"]).tolist() == [case["comparison"]]


def test_the_table_of_q_insight() -> None:
    one_line = '<think>x</think><answer>{"rating": 3.4}</answer>'
    assert q_insight.format_rewards([one_line]).tolist() == [1]  # what the prompt asks for
    assert q_insight.format_rewards([one_line], newlines=True).tolist() == [0]
    assert q_insight.score_rewards([one_line] * 3, [3.0, 3.1, 3.75]).tolist() == [0, 1, 0]
    assert q_insight.score_rewards([one_line], [3.0], threshold=0.5).tolist() == [1]
    hostile = ["<answer>[1]</answer>", "<answer>{</answer>", '<answer>{"rating": true}</answer>', "<answer>" * 50]
    hostile += ['<answer>{"rating": ' + "9" * 400 + "}</answer>", '<answer>{"rating": NaN}</answer>']
    assert q_insight.score_rewards(hostile, [1.0] * len(hostile)).tolist() == [0] * len(hostile)
    assert q_insight.degradation_rewards(hostile, ["null"] * 6, ["null"] * 6).tolist() == [0] * 6
