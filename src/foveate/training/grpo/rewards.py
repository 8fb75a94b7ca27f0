"""Rewards of VisionThink (arXiv 2507.13348) and AdaptVision (arXiv 2512.03794), from what a model wrote.

A rollout is the texts of its turns, one or two. All functions take the rollouts of one question, a group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.errors import FoveateError

#: The texts that a model wrote, one a turn.
Turns = Sequence[str]

_ANSWER = re.compile(r"<think>.*</think>.*<answer>.*</answer>\n?", re.DOTALL)
_CALL = re.compile(r"<think>.*</think>.*<tool_call>.*</tool_call>", re.DOTALL)
_TOOL = re.compile(r"<tool_call>.*?</tool_call>", re.DOTALL)


def calls_tool(turns: Turns) -> bool:
    """Whether a rollout used the tool: a turn before the last holds a call, or the only turn does."""
    return any(_TOOL.search(turn) for turn in (turns[:-1] or turns))


def format_rewards(rollouts: Sequence[Turns], *, balanced_tags: bool = True) -> Tensor:
    """Rewards (G,) for the format: 1 if every turn is well formed, else 0.

    The last turn must be `<think>...</think>...<answer>...</answer>` with each tag once and without a tool call, every
    earlier one `<think>...</think>...<tool_call>...</tool_call>` without an answer.

    Args:
        rollouts: Texts of the turns.
        balanced_tags: Require one opening and one closing tag of a tool call. False accepts one of the two, as
            VisionThink's code does by mistake (`general_qa_tool.py`).
    """
    return torch.tensor([float(_well_formed(turns, balanced_tags)) for turns in rollouts])


def _well_formed(turns: Turns, balanced_tags: bool) -> bool:
    # White space around an only turn does not count. Around a last one of two it does, but for a new line at its end,
    # as in the authors' code.
    *calls, last = (turns[0].strip(),) if len(turns) == 1 else turns
    return all(_is_call(turn.strip(), balanced_tags) for turn in calls) and _is_answer(last)


def _is_answer(text: str) -> bool:
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    return bool(_ANSWER.fullmatch(text)) and once and not any(tag in text for tag in ("<tool_call>", "</tool_call>"))


def _is_call(text: str, balanced_tags: bool) -> bool:
    once = [text.count(tag) == 1 for tag in ("<tool_call>", "</tool_call>")]
    return (
        bool(_CALL.fullmatch(text))
        and all(text.count(tag) == 1 for tag in ("<think>", "</think>"))
        and (all(once) if balanced_tags else any(once))
        and not any(tag in text for tag in ("<answer>", "</answer>"))
    )


def accuracy_rewards(
    rollouts: Sequence[Turns],
    correct: Sequence[bool] | Tensor,
    *,
    tool_penalty: float = 0.1,
    direct_penalty: float = 0.1,
    direct_share: float = 0.2,
    share_epsilon: float = 0.0,
) -> Tensor:
    """Rewards (G,) for accuracy with VisionThink's control of tool calls; AdaptVision has the same.

    A right answer is worth 1, or `1 - tool_penalty` where the tool was used. With rho the share of direct answers among
    right ones, and `0 < rho < direct_share`, the image is likely too small for the question, and right direct answers
    are lucky: they are worth `1 - direct_penalty`.

    Args:
        rollouts: Texts of the turns, of one question.
        correct: (G,) whether the answer is right.
        tool_penalty: See above.
        direct_penalty: See above.
        direct_share: See above; 0 switches the control off.
        share_epsilon: Added to the number of right answers; the authors' code has 1e-4, so that a share of exactly
            `direct_share` is below it.
    """
    right = torch.as_tensor(correct, dtype=torch.bool)
    if len(right) != len(rollouts):
        raise FoveateError(f"there are {len(rollouts)} rollouts, and {len(right)} of them are said to be right or not.")
    called = torch.tensor([calls_tool(turns) for turns in rollouts])
    direct = right & ~called
    share = int(direct.sum()) / (int(right.sum()) + share_epsilon) if right.any() else 0.0
    rewards = right.float() * torch.where(called, 1.0 - tool_penalty, 1.0)
    if 0 < share < direct_share:
        rewards[direct] = 1.0 - direct_penalty
    return rewards


def outcome_rewards(
    rollouts: Sequence[Turns],
    correct: Sequence[bool] | Tensor,
    *,
    format_weight: float = 0.5,
    balanced_tags: bool = True,
    **control: float,
) -> Tensor:
    """Rewards (G,) of the outcome: `accuracy_rewards` with its options, plus `format_weight` for the format."""
    formats = format_rewards(rollouts, balanced_tags=balanced_tags)
    return accuracy_rewards(rollouts, correct, **control) + format_weight * formats


def area_penalties(areas: Tensor, valid: Tensor, correct: Tensor) -> Tensor:
    """AdaptVision's adaptive area term (G,): how much larger a crop is than those of other right rollouts.

    Over rollouts that are right with a valid crop, with the mean area a: `clip(area / a - 1, 0, 1)`. 0 for all others.

    Args:
        areas: (G,) areas of the boxes, as shares of the image.
        valid: (G,) whether the crop shows what the answer needs.
        correct: (G,) whether the answer is right.
    """
    counted = valid.bool() & correct.bool()
    if not counted.any():
        return torch.zeros_like(areas)
    # The mean is not 0 unless all areas are; the constants are those of the authors' code.
    mean = areas[counted].sum() / (counted.sum() + 1e-8)
    return torch.where(counted & (areas > 0), (areas / (mean + 1e-8) - 1).clamp(0, 1), 0.0)


def tool_rewards(
    areas: Tensor, valid: Tensor, correct: Tensor, *, crop_weight: float = 0.1, area_weight: float = 0.2
) -> Tensor:
    """AdaptVision's rewards (G,) of the tool call: `crop_weight * valid - area_weight * area_penalties`.

    Args:
        areas: (G,) areas of the boxes, as shares of the image; 0 without a call.
        valid: (G,) whether the crop shows what the answer needs; False without a call.
        correct: (G,) whether the answer is right.
        crop_weight: See above.
        area_weight: See above.
    """
    return crop_weight * valid.float() - area_weight * area_penalties(areas, valid, correct)
