"""Advantages of GRPO and of AdaptVision's DTPO.

Rollouts of one question are neighbours: a batch of B has B / group groups. A turn map (B, T) says which turn a token of
a completion was written in, 1 or 2; 0 stands for tokens of tools and for padding.
"""

from __future__ import annotations

from torch import Tensor

from foveate.core.errors import FoveateError


def group_advantages(rewards: Tensor, group: int, epsilon: float = 1e-6) -> Tensor:
    """Z-scores (B,) of rewards (B,) within their groups, with the unbiased standard deviation, as in the authors' code.

    A group of one has the advantages of mean 0 and deviation 1.
    """
    grouped = _grouped(rewards, group)
    if group == 1:
        return rewards / (1 + epsilon)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + epsilon)).flatten()


def informative(rewards: Tensor, group: int, least: float = 1e-4) -> Tensor:
    """Whether a rollout (B,) is of a group whose rewards deviate by `least` or more; others teach nothing."""
    if group == 1:
        return rewards.new_ones(len(rewards)).bool()
    return (_grouped(rewards, group).std(1) >= least).repeat_interleave(group)


def dtpo_advantages(
    tool_rewards: Tensor,
    outcome_rewards: Tensor,
    turns: Tensor,
    group: int,
    tool_weight: float = 0.3,
    epsilon: float = 1e-6,
) -> Tensor:
    """Advantages (B, T) of DTPO: z-scores of both rewards apart, that of the tool for tokens of the first turn alone.

    Tokens of the first turn get `tool_weight * A_tool + A_outcome`, those of the second `A_outcome`.

    Args:
        tool_rewards: (B,) rewards of the tool call.
        outcome_rewards: (B,) rewards of the outcome.
        turns: (B, T) turn map.
        group: Rollouts of a question.
        tool_weight: Weight of the tool's advantage.
        epsilon: Added to the standard deviations.
    """
    tool, outcome = (group_advantages(rewards, group, epsilon)[:, None] for rewards in (tool_rewards, outcome_rewards))
    return (turns > 0) * outcome + (turns == 1) * (tool_weight * tool)


def turn_weights(turns: Tensor, first_weight: float = 0.5) -> Tensor:
    """Weights (B, T) of tokens whose weighted mean over all written tokens is DTPO's sum of two means.

    DTPO averages the loss over tokens before the last turn of their rollout and over tokens of last turns apart:
    `L = first_weight * L_first + L_last`. With n_first, n_last and n such tokens, a token counts `first_weight *
    n / n_first` or `n / n_last`. Weights are positive, and the clipped loss is proportional to positive factors of
    advantages, so that the trainer takes them as part of the advantages.

    Args:
        turns: (B, T) turn map of all tokens that a loss is averaged over.
        first_weight: Weight of the first mean.
    """
    last = (turns > 0) & (turns == turns.amax(1, keepdim=True))
    first = (turns > 0) & ~last
    count = (turns > 0).sum()
    weights = last * (count / last.sum().clamp(min=1))
    return weights + first * (first_weight * count / first.sum().clamp(min=1))


def _grouped(rewards: Tensor, group: int) -> Tensor:
    if group < 1 or len(rewards) % group:
        raise FoveateError(f"{len(rewards)} rewards cannot be divided into groups of {group}.")
    return rewards.view(-1, group)
