"""Training of drafts for `foveate.speculate`, on what one model writes; its weights stay as they are.

On-line, as SpecVLM does it (arXiv 2509.11815): the model reads a prompt and writes its answer, or reads the answer of
the data; its last features and what its output layer says of them are what the draft learns from, and nothing is
stored. Schedule and clipping are those of `foveate.training.methods.shared.loop`, our choice; the paper takes AdamW
with betas 0.9 and 0.95 and a learning rate of 8e-5 for a model of 7 billion weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from foveate.answering.conversations import check_length, greedy
from foveate.core.errors import FoveateError
from foveate.families import family_of
from foveate.methods.decoding.draft import Draft, Target
from foveate.methods.decoding.kinds import load_draft
from foveate.runtime.speculative import prompt_mask, record_passes, speculate, target_of
from foveate.training.examples import Example
from foveate.training.methods.shared.base import StepTrainer
from foveate.training.methods.shared.config import option
from foveate.training.methods.shared.loop import Losses, TrainState
from foveate.training.methods.shared.questions import QuestionsConfig
from foveate.training.methods.shared.relevance_targets import continued, read_example


@dataclass(frozen=True)
class DraftSample:
    """One conversation as a training sample of a draft.

    Args:
        features: (L + A - 1, d), the model's last features of the prompt and of its answer but the last token.
        embeddings: (L + A - 1, d), what the language model was given.
        visual: (L + A - 1,) bool, which positions are of images.
        prompt: L.
    """

    features: Tensor
    embeddings: Tensor
    visual: Tensor
    prompt: int


@torch.no_grad()
def record_conversation(model: Any, processor: Any, example: Example, own_answers: int | None) -> DraftSample:
    """Record a model's features on a conversation, or on its question and the model's own answer.

    Args:
        model: A model of a known family, without a plan or draft attached.
        processor: Its processor.
        example: Up to the first answer that follows all its images.
        own_answers: The most tokens of the model's own greedy answer; None: the answer of the data.

    Raises:
        FoveateError: the example cannot be read, or is longer than the model's positions.
    """
    family = family_of(model)
    core = family.core(model)
    inputs, answer = read_example(model, processor, example)
    prompt = inputs["input_ids"].shape[1]
    with record_passes(family.text(core)) as recorded:
        if own_answers is None:
            model(**continued(inputs, answer[:-1], family.answer_type), use_cache=False)
        else:
            check_length(model, prompt, own_answers)
            model.generate(**inputs, generation_config=greedy(model, own_answers))
    embeddings, features = recorded.take()
    visual = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
    visual[:prompt] = prompt_mask(family, core, inputs["input_ids"][0])
    return DraftSample(features.float(), embeddings.float(), visual, prompt)


def loss_of(draft: Draft, target: Target, sample: DraftSample, generator: torch.Generator) -> Tensor:
    """The loss of one conversation, over its answer."""
    num_answer = len(sample.features) - sample.prompt
    if not num_answer:  # an answer of one token: nothing follows that could be drafted
        return torch.stack([parameter.sum() for parameter in draft.parameters()]).sum() * 0
    # The feature after the last one is not known.
    past = (sample.features[:-1], sample.embeddings[1:], sample.visual[:-1])
    expected = sample.features[sample.prompt :]
    drafted = draft(*past, sample.prompt, generator)[-num_answer:]
    loss = draft.loss(drafted, expected, target)[0]

    @torch.no_grad()
    def branch_loss(branch: str) -> Tensor:
        drawn = torch.Generator().manual_seed(0)
        return draft.loss(draft(*past, sample.prompt, drawn)[-num_answer:], expected, target)[0]

    return loss + draft.choosing_loss(branch_loss, *(part[: sample.prompt] for part in past))


#: Ways of drafting that are measured, as `speculate` takes them.
WAYS: dict[str, dict[str, int]] = {"default": {}, "chain": {"top_k": 1}}


def measure(
    model: Any, processor: Any, draft: Draft, examples: Sequence[Example], max_new_tokens: int
) -> dict[str, dict[str, Any]]:
    """Evaluate a draft on held-out questions, in its own shape and as a chain.

    Args:
        model: The model that the draft is for.
        processor: Its processor.
        draft: The draft.
        examples: Questions; what the model itself answers counts, not the data's answers.
        max_new_tokens: Length at which answers are cut off.

    Returns:
        For every way: ``tokens`` and ``passes`` (after the prompt's) of all answers, ``acceptance_length`` (tokens a
        pass), ``identical`` (answers that are those of the model alone, token by token), ``answers``, ``seconds``
        with the draft, ``seconds_alone``, both of all of `generate`, and ``speed_up``, their ratio.
    """
    results = {way: {"tokens": 0, "passes": 0, "answers": 0, "identical": 0, "seconds": 0.0} for way in WAYS}
    alone = 0.0
    for example in examples:
        inputs, _ = read_example(model, processor, example)
        settings = greedy(model, max_new_tokens)
        expected, seconds = _timed(model, inputs, settings)
        alone += seconds
        for way, options in WAYS.items():
            row = results[way]
            with speculate(model, draft, **options) as handle:
                output, seconds = _timed(model, inputs, settings)
            report = handle.report()
            row["tokens"] += report.tokens
            row["passes"] += report.passes
            row["answers"] += 1
            row["identical"] += int(torch.equal(output, expected))
            row["seconds"] += seconds
    for row in results.values():
        written = row["tokens"] - row["answers"]
        row["acceptance_length"] = written / row["passes"] if row["passes"] else 1.0
        row["seconds_alone"], row["speed_up"] = alone, alone / row["seconds"]
    return results


@torch.inference_mode()
def _timed(model: Any, inputs: dict[str, Any], settings: Any) -> tuple[Tensor, float]:
    start = time.perf_counter()
    output = model.generate(**inputs, generation_config=settings).cpu()
    return output, time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class DraftTrainConfig(QuestionsConfig):
    """How drafts are trained."""

    learning_rate: float = option(1e-3, "Greatest step size; for large models 8e-5.")
    own_answers: bool = option(
        True, "Learn what the model writes, or the data's answers.", flags="--own-answers/--data-answers"
    )
    max_new_tokens: int = option(64, "Length at which own answers are cut off.", minimum=2)
    held_out: int = option(50, "Held-out rendered questions to measure on.", minimum=1, identifies=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 2:
            raise FoveateError(f"max_new_tokens must be 2 or more, not {self.max_new_tokens}.")

    @property
    def built(self) -> dict[str, Any]:
        """What a draft is built from: the options that its own configuration has too."""
        names = {one.name for one in fields(self.draft_class.config_class)}
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name in names}

    draft_class: ClassVar[type[Draft]]


Config = TypeVar("Config", bound=DraftTrainConfig)


class DraftTrainer(StepTrainer[Config]):
    """Trains a draft on the features and words of a model that answers questions."""

    def about(self) -> dict[str, Any]:
        """Options and the content of files."""
        return {"method": self.name, **self.config.about()}

    def data(self) -> Callable[[int], Example]:
        """Questions by number."""
        return self.config.examples()

    def network(self, model: Any) -> Draft:
        """A draft of the model's sizes."""
        cls = self.config.draft_class
        return cls.new(cls.config_class.of(model, **self.config.built))

    def step(self, model: Any, processor: Any, network: Any, data: Callable[[int], Example], step: int) -> Losses:
        """One loss a conversation."""
        config, target = self.config, target_of(model)
        max_new_tokens = config.max_new_tokens if config.own_answers else None
        for number in config.samples(step):
            seed = config.seed * 1_000_003 + number
            sample = record_conversation(model, processor, data(number), max_new_tokens)
            generator = torch.Generator().manual_seed(seed)
            yield (
                seed,
                lambda sample=sample, generator=generator: (
                    loss_of(network, target, sample, generator) / config.batch_size
                ),
            )

    def save(self, network: Draft, output: Path) -> None:
        """Write a trained draft to a folder, in half precision: it only guesses."""
        copy.deepcopy(network).bfloat16().save(output)

    def evaluate(self, model: Any, processor: Any, state: TrainState[Draft], output: Path) -> dict[str, Any]:
        """Tokens a pass, time and equal answers on held-out questions, as it was saved; see `measure`."""
        questions, longest = self.config.pages.held_out(self.config.held_out), self.config.max_new_tokens
        measured = measure(model, processor, load_draft(output), questions, longest)
        return {"held_out": len(questions), "measured": measured}

    def describe(self, model: Any, state: TrainState[Draft]) -> dict[str, Any]:
        """Parameters, steps and samples."""
        parameters = sum(parameter.numel() for parameter in state.network.parameters())
        return {"parameters": parameters, **super().describe(model, state)}

    def report_measured(self, document: dict[str, Any]) -> Iterable[str]:
        """A line for every way of drafting."""
        for way, row in document["measured"].items():
            yield (
                f"  {way}: {row['acceptance_length']:.2f} tokens a pass, {row['seconds']:.1f} s where the model alone "
                f"takes {row['seconds_alone']:.1f} s, {row['identical']} of {row['answers']} answers the same"
            )
