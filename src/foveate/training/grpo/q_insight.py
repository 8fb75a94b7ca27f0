"""Rewards of Q-Insight (arXiv 2503.22679): scores, degradations and comparisons of image quality, from text.

No token compression; a reference for GRPO with verifiable rewards. All functions take the texts of answers and return
rewards (G,). Source of the departures: bytedance/Q-Insight, `qinsight_multi_task.py` and `qinsight_comparison.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import torch
from torch import Tensor

#: Classes and levels of degradations, which `foveate.synthetic.degradations` renders; "null" stands for none.
CLASSES = ("noise", "compression", "blur", "darken")
LEVELS = ("slight", "moderate", "obvious", "serious", "catastrophic")

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LOOSE = re.compile(r"\s*<think>.*?</think>\s*<answer>\s*(.*?)\s*</answer>\s*", re.DOTALL)
_STRICT = re.compile(r"<think>\s*\n.*?\n\s*</think>\s*\n<answer>\s*\n(.*?)\s*\n\s*</answer>\s*", re.DOTALL)
_JSON = re.compile(r"\{[^{}]*\}")


def format_rewards(texts: Sequence[str], *, as_json: bool = True, newlines: bool = False) -> Tensor:
    """1 for a text of `<think>...</think><answer>...</answer>`, else 0.

    Args:
        texts: What the model wrote.
        as_json: The answer must be one object in braces; False for comparisons.
        newlines: Every tag must be on a line of its own, as the authors' regular expression demands; their prompt
            does not say so.
    """
    matches = [(_STRICT if newlines else _LOOSE).fullmatch(text) for text in texts]
    return torch.tensor([float(m is not None and (not as_json or _JSON.fullmatch(m[1]) is not None)) for m in matches])


def score_rewards(texts: Sequence[str], scores: Sequence[float], *, threshold: float = 0.35) -> Tensor:
    """1 where the answer's `rating` is nearer to the score than `threshold`, else 0."""
    rewards = []
    for text, score in zip(texts, scores, strict=True):
        rating = _answer(text).get("rating")
        rewards.append(float(isinstance(rating, float) and abs(rating - score) < threshold))
    return torch.tensor(rewards)


def degradation_rewards(
    texts: Sequence[str],
    classes: Sequence[str],
    levels: Sequence[str],
    *,
    class_weight: float = 0.25,
    level_weight: float = 0.75,
) -> Tensor:
    """`class_weight` for the right `distortion_class`, and `level_weight` more if `severity` is right too.

    A level counts with the right class only. No degradation is the text "null" in both.
    """
    rewards = []
    for text, kind, level in zip(texts, classes, levels, strict=True):
        answer = _answer(text)
        right = answer.get("distortion_class") == kind
        rewards.append((class_weight + level_weight * (answer.get("severity") == level)) if right else 0.0)
    return torch.tensor(rewards)


def comparison_rewards(texts: Sequence[str], better: Sequence[str]) -> Tensor:
    """1 where the answer is exactly the name of the better image, such as "Image A", else 0."""
    found = [_ANSWER.search(text) for text in texts]
    return torch.tensor([float(m is not None and m[1].strip() == name) for m, name in zip(found, better, strict=True)])


def _answer(text: str) -> dict[str, object]:
    """The object in the first `<answer>`, keys in any order; empty where there is none.

    The authors search the text of the answer with regular expressions, which also accept a key in other text, a
    `distortion_class` only before its `severity`, and a rating written as a number alone.
    """
    match = _ANSWER.search(text)
    try:
        answer = json.loads(match[1], parse_int=float) if match else {}
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
