"""Feature recalibration distillation of a vision tower, while its language model trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.models.encoders.sit import SiTModel, check_teacher, recovery_error


def slimmed_tower(model: Any) -> SiTModel:
    """The vision tower of a model, which is a SiT that recovers the tokens that it slims.

    Raises:
        FoveateError: It is not.
    """
    tower = getattr(model.model, "vision_tower", None)
    if not isinstance(tower, SiTModel) or not tower.reverse:
        raise FoveateError(
            "loss.recalibration teaches a vision tower of the type sit, with slimming and reverse modules, and this "
            "model has none."
        )
    return tower


class Recalibration:
    """Teaches a slimmed tower the tokens of the same tower without slimming, after every block.

    While it is attached, the tower returns its recovered tokens, and the sums of the loss grow with every call of it.
    The term of the tokens alone: that of the logits needs the classifier of an image, which a tower of a language model
    does not have. The teacher is in evaluation mode, on the device of the images.

    Self-slimmed Vision Transformer (Zong et al., arXiv 2111.12624, ECCV 2022); `foveate.models.encoders.sit.frd_loss`
    has the loss of a classifier.

    Args:
        student: The vision tower.
        teacher: The same without slimming. It becomes no part of the trained model.

    Raises:
        FoveateError: The teacher slims tokens or has other sizes.
    """

    def __init__(self, student: SiTModel, teacher: Any) -> None:
        check_teacher(student, teacher)
        if teacher.config.slimmed_after:
            raise FoveateError("the teacher slims tokens itself: train it with slimming: false in model.new.vision.")
        self._teacher = teacher.eval().requires_grad_(False)
        self._config = student.config
        self._sums: dict[str, Tensor] = {}
        self._compared: Any = None
        self._hooks = (
            student.register_forward_pre_hook(self._ask, with_kwargs=True),
            student.register_forward_hook(self._compare, with_kwargs=True),
        )

    def take(self) -> dict[str, Tensor]:
        """The sums of the loss over the images encoded since the last call: `recalibration_loss` and its divisor."""
        sums, self._sums, self._compared = self._sums, {}, None
        return sums

    def remove(self) -> None:
        """Detach from the tower."""
        for hook in self._hooks:
            hook.remove()

    def _ask(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        pixels = args[0] if args else kwargs["pixel_values"]
        side, (height, width) = self._config.image_size, pixels.shape[-2:]
        if (height, width) != (side, side):
            raise FoveateError(
                f"loss.recalibration needs images of {side} x {side} pixels, as many as the reverse modules recover "
                f"patches of, not {height} x {width}."
            )
        return args, {**kwargs, "output_recovered": True}

    def _compare(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if output is self._compared:  # one encoding for several lengths of a connector
            return
        self._compared = output
        pixels = args[0] if args else kwargs["pixel_values"]
        with torch.no_grad():
            target = self._teacher.to(pixels.device)(pixels, output_recovered=True).recovered_tokens
        loss = recovery_error(output.recovered_tokens, target) * len(pixels)
        count = torch.tensor(len(pixels), device=pixels.device)
        found = {"recalibration_loss": loss, "recalibration_count": count}
        self._sums = {name: value + self._sums.get(name, 0) for name, value in found.items()}
