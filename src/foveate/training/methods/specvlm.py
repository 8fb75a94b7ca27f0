"""SpecVLM's draft (arXiv 2509.11815), which guesses what a model will write and reads images through a compressor."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.methods.decoding.specvlm import SpecVLM
from foveate.training.methods.shared.config import option
from foveate.training.methods.shared.drafts import DraftTrainConfig, DraftTrainer


@dataclass(frozen=True, kw_only=True)
class SpecVLMTrainConfig(DraftTrainConfig):
    """How a SpecVLM draft is trained."""

    draft_class = SpecVLM

    compressor: str = option(
        "gate", "How it reads images: gate (the question chooses), join, prune, pool, conv, resample, text."
    )
    queries: int = option(2, "Tokens of the resampler.", minimum=1)


class SpecVLMTrainer(DraftTrainer[SpecVLMTrainConfig]):
    """Trains a SpecVLM draft."""

    name = SpecVLM.kind
    config_class = SpecVLMTrainConfig
    output = "draft"
    examples = """
        foveate train-method specvlm -o draft --steps 500
        foveate train-method specvlm --model llava-hf/llava-1.5-7b-hf --data receipts.jsonl -o draft
        foveate ask receipt.png "What is the total?" --draft draft
    """
