"""Fidelity of plans: distance of their answers to the full model's on held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.full_model import FULL_MODEL
from foveate.runtime import compress
from foveate.training.examples import Example
from foveate.training.methods.shared.teacher_forcing import RecordedActivations, encoding_once, record


@torch.no_grad()
def measure(
    model: Any, processor: Any, examples: Sequence[Example], plans: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Measure the fidelity of plans, averaged over the tokens of all answers.

    Args:
        model: A model of a known family, without a plan attached.
        processor: Its processor.
        examples: Questions with answers.
        plans: As text; all act inside the language model.

    Returns:
        For "full model" and every plan ``loss``, the cross-entropy of the answers in nats; ``kl``, the divergence from
        the full model in nats; ``agreement``, the share of tokens whose most probable value is the full
        model's; ``tokens``, the share of visual tokens remaining in the last layer.
    """
    sums = {plan: torch.zeros(3, dtype=torch.float64) for plan in (FULL_MODEL, *plans)}
    counted = dict.fromkeys(sums, 0)
    shares: dict[str, list[float]] = {plan: [] for plan in sums}
    for example in examples:
        with encoding_once(model):
            recorded = record(model, processor, example, (1,))
            count = len(recorded.answer)
            full = model(**recorded.inputs, use_cache=False).logits[0, recorded.rows].float().log_softmax(dim=-1)
            for plan in sums:
                log_probs, share = (full, 1.0) if plan == FULL_MODEL else _answered(model, recorded, plan)
                sums[plan] += torch.tensor(
                    [
                        float(F.nll_loss(log_probs, recorded.answer, reduction="sum")),
                        float(F.kl_div(log_probs, full, log_target=True, reduction="sum")),
                        float((log_probs.argmax(dim=-1) == full.argmax(dim=-1)).sum()),
                    ]
                )
                counted[plan] += count
                shares[plan].append(share)
    return {
        plan: dict(zip(("loss", "kl", "agreement"), (total / counted[plan]).tolist(), strict=True))
        | {"tokens": sum(shares[plan]) / len(shares[plan])}
        for plan, total in sums.items()
    }


def _answered(model: Any, recorded: RecordedActivations, plan: str) -> tuple[Tensor, float]:
    """Logarithms of probabilities (A, vocabulary) of the answer under a plan, and the share of tokens at the end."""
    count = len(recorded.answer)
    labels = recorded.inputs["input_ids"].clone()
    labels[:, :-count] = -100
    with compress(model, plan) as handle:
        logits = model(**recorded.inputs, labels=labels, use_cache=False).logits
        images = handle.report().images
    last = [image.layers[-1].tokens_kept if image.layers else image.tokens_kept for image in images]
    # The answer ends the sequence, however much of what is before it has gone.
    log_probs = logits[0, -count - 1 : -1].float().log_softmax(dim=-1)
    return log_probs, sum(last) / max(1, sum(image.tokens_in for image in images))
