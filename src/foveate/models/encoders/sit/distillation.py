"""Feature recalibration distillation: a slimmed network learns every layer's tokens of the full one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.sit.classification import SiTClassifierOutput, read_outputs


@dataclass(frozen=True)
class FRD:
    """Weights of feature recalibration distillation, with the defaults of the paper.

    Args:
        tokens: Of the mean squared error of recovered tokens, a mean over the layers.
        logits: Of the Kullback-Leibler divergence of the logits.
        temperature: That logits are divided by; the divergence is multiplied by its square.
    """

    tokens: float = 2.0
    logits: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.logits < 0 or self.temperature <= 0:
            raise FoveateError(f"weights must not be negative, and the temperature must be positive, not {self}.")


class FRDLoss(NamedTuple):
    """Parts of the loss, the last two with their weights; `total` is their sum."""

    labels: Tensor
    tokens: Tensor
    logits: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return self.labels + self.tokens + self.logits


def frd_loss(
    student: SiTClassifierOutput, teacher: SiTClassifierOutput, labels: Tensor, weights: FRD | None = None
) -> FRDLoss:
    """Feature recalibration distillation.

        CE(labels) + w_t / L sum_l MSE(recovered_l, tokens_l of the teacher) + w_l T^2 KL(teacher || student)

    The divergence is a mean over images. Gradients reach the student alone.

    Args:
        student: Of a [`SiTForImageClassification`] in training.
        teacher: Of one with `slimming=False` on the same images, called with `output_recovered=True`.
        labels: `(B,)` classes.
        weights: Of the parts; None: those of the paper.

    Raises:
        FoveateError: An output lacks the tokens, or the two do not have the same layers and tokens.
    """
    weights = weights or FRD()
    logits, recovered = read_outputs(student, "student")
    target, tokens = read_outputs(teacher, "teacher")
    divergence = F.kl_div(
        (logits / weights.temperature).log_softmax(-1),
        (target.detach() / weights.temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    return FRDLoss(
        F.cross_entropy(logits, labels),
        weights.tokens * recovery_error(recovered, tokens),
        weights.logits * weights.temperature**2 * divergence,
    )


def recovery_error(recovered: Sequence[Tensor], tokens: Sequence[Tensor]) -> Tensor:
    """Mean squared error of recovered tokens, a mean over the layers, in float32; gradients reach them alone.

    Args:
        recovered: `(B, N, D)` of every layer of a student.
        tokens: The same of its teacher.

    Raises:
        FoveateError: They do not have the same layers and tokens.
    """
    ours, theirs = ([tuple(layer.shape) for layer in layers] for layers in (recovered, tokens))
    if ours != theirs:
        raise FoveateError(
            f"the student has {len(ours)} layers with tokens of shape {ours[-1]}, and the teacher {len(theirs)} with "
            f"{theirs[-1]}; the teacher must be the same network without slimming, on the same images."
        )
    pairs = zip(recovered, tokens, strict=True)
    return torch.stack([F.mse_loss(layer.float(), goal.detach().float()) for layer, goal in pairs]).mean()


def initialize_from_teacher(student: Any, teacher: Any) -> None:
    """Copy all weights of a teacher to a student, whose slimming and reverse modules keep theirs.

    Args:
        student: A [`SiTModel`] or [`SiTForImageClassification`].
        teacher: The same class with `slimming=False`.

    Raises:
        FoveateError: They are not the same network.
    """
    check_teacher(student, teacher)
    student.load_state_dict(teacher.state_dict(), strict=False)


def check_teacher(student: Any, teacher: Any) -> None:
    """Refuse a teacher that is another network than the student, apart from slimming and reverse modules.

    Raises:
        FoveateError: It is.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    new = (".slimming.", ".reverse.")
    missing = sorted(key for key in ours if key not in theirs and not any(part in f".{key}" for part in new))
    different = sorted(key for key, value in theirs.items() if key not in ours or ours[key].shape != value.shape)
    if missing or different:
        raise FoveateError(f"the teacher is another network than the student, such as in {(missing + different)[0]}.")
