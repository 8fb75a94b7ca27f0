"""FLASH's draft (arXiv 2505.12728), which reads images through a few queries and guesses several tokens in one pass."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods.decoding.flash import Flash
from foveate.training.methods.shared.config import option
from foveate.training.methods.shared.drafts import DraftTrainConfig, DraftTrainer


@dataclass(frozen=True, kw_only=True)
class FlashTrainConfig(DraftTrainConfig):
    """How a FLASH draft is trained."""

    draft_class = Flash

    queries: int = option(64, "Tokens that stand for an image.", minimum=1)
    guesses: int = option(5, "Tokens guessed at a time.", minimum=1)


class FlashTrainer(DraftTrainer[FlashTrainConfig]):
    """Trains a FLASH draft."""

    name = Flash.kind
    config_class = FlashTrainConfig
    output = "draft"
    examples = """
        foveate train-method flash -o draft --steps 500
        foveate train-method flash --model llava-hf/llava-1.5-7b-hf --data receipts.jsonl -o draft
        foveate ask receipt.png "What is the total?" --draft draft
    """
