"""Training of drafts for `foveate.speculate`, on what one model writes; its weights stay as they are.

On-line, as SpecVLM does it (arXiv 2509.11815): the model reads a prompt and writes its answer, or reads the answer of
the data; its last features and what its output layer says of them are what the draft learns from, and nothing is
stored. Schedule and clipping are those of `foveate.training.methods.shared.loop`, our choice; the paper takes AdamW with betas
0.9 and 0.95 and a learning rate of 8e-5 for a model of 7 billion weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.answering.conversations import check_length, greedy
from foveate.families import family_of
from foveate.methods.decoding.draft import Draft, Target
from foveate.runtime.speculative import prompt_mask, speculate, target_of, watching
from foveate.training.callbacks import StopRequest
from foveate.training.examples import Example
from foveate.training.methods import loop
from foveate.training.methods.relevance import RunDirectory
from foveate.training.methods.shared.relevance_targets import continued, read_example


@dataclass(frozen=True)
class Heard:
    """One conversation as a draft learns it.

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
def hear(model: Any, processor: Any, example: Example, own_answers: int | None) -> Heard:
    """Let a model read a conversation, or read its question and answer it.

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
    with watching(family.text(core)) as seen:
        if own_answers is None:
            model(**continued(inputs, answer[:-1], family.answer_type), use_cache=False)
        else:
            check_length(model, prompt, own_answers)
            model.generate(**inputs, generation_config=greedy(model, own_answers))
    embeddings, features = seen.take()
    visual = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
    visual[:prompt] = prompt_mask(family, core, inputs["input_ids"][0])
    return Heard(features.float(), embeddings.float(), visual, prompt)


def loss_of(draft: Draft, target: Target, heard: Heard, generator: torch.Generator) -> Tensor:
    """The loss of one conversation, over its answer."""
    written = len(heard.features) - heard.prompt
    if not written:  # an answer of one token: nothing follows that could be drafted
        return torch.stack([parameter.sum() for parameter in draft.parameters()]).sum() * 0
    # The feature after the last one is not known.
    past = (heard.features[:-1], heard.embeddings[1:], heard.visual[:-1])
    right = heard.features[heard.prompt :]
    guessed = draft(*past, heard.prompt, generator)[-written:]
    loss = draft.loss(guessed, right, target)[0]

    @torch.no_grad()
    def under(way: str) -> Tensor:
        drawn = torch.Generator().manual_seed(0)
        return draft.loss(draft(*past, heard.prompt, drawn)[-written:], right, target)[0]

    return loss + draft.choosing_loss(under, *(part[: heard.prompt] for part in past))


def fit(
    model: Any,
    processor: Any,
    examples: Callable[[int], Example],
    draft: Draft,
    config: loop.TrainConfig,
    own_answers: int | None,
    folder: RunDirectory,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: StopRequest | None = None,
) -> loop.TrainState[Draft]:
    """Train a draft, or go on from the last state of a run.

    Args:
        model: A model of a known family.
        processor: Its processor.
        examples: Conversations by number.
        draft: With its first weights.
        config: Schedule.
        own_answers: See `hear`.
        folder: Of the run.
        on_progress: Called with how many steps are done, and the loss of the last.
        stop: Asked after every step.

    Raises:
        FoveateError: the model cannot be read, or the folder holds a run of another draft.
    """
    draft = draft.to(model.device)
    target = target_of(model)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def losses(step: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        for number in config.samples(step):
            seed = config.seed * 1_000_003 + number
            heard = hear(model, processor, examples(number), own_answers)
            generator = torch.Generator().manual_seed(seed)
            yield (
                seed,
                lambda heard=heard, generator=generator: loss_of(draft, target, heard, generator) / config.batch_size,
            )

    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        of = {"kind": draft.kind, "own_answers": own_answers} | asdict(draft.config)
        return loop.fit(draft, losses, config, of, folder, on_progress, stop)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


#: Ways of drafting that are measured, as `speculate` takes them.
WAYS: dict[str, dict[str, int]] = {"default": {}, "chain": {"top_k": 1}}


def measure(
    model: Any, processor: Any, draft: Draft, examples: Sequence[Example], max_new_tokens: int
) -> dict[str, dict[str, Any]]:
    """How a draft does on held-out questions, in its own shape and as a chain.

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
    found = {way: {"tokens": 0, "passes": 0, "answers": 0, "identical": 0, "seconds": 0.0} for way in WAYS}
    alone = 0.0
    for example in examples:
        inputs, _ = read_example(model, processor, example)
        settings = greedy(model, max_new_tokens)
        expected, seconds = _timed(model, inputs, settings)
        alone += seconds
        for way, options in WAYS.items():
            row = found[way]
            with speculate(model, draft, **options) as handle:
                output, seconds = _timed(model, inputs, settings)
            report = handle.report()
            row["tokens"] += report.tokens
            row["passes"] += report.passes
            row["answers"] += 1
            row["identical"] += int(torch.equal(output, expected))
            row["seconds"] += seconds
    for row in found.values():
        written = row["tokens"] - row["answers"]
        row["acceptance_length"] = written / row["passes"] if row["passes"] else 1.0
        row["seconds_alone"], row["speed_up"] = alone, alone / row["seconds"]
    return found


@torch.inference_mode()
def _timed(model: Any, inputs: dict[str, Any], settings: Any) -> tuple[Tensor, float]:
    start = time.perf_counter()
    output = model.generate(**inputs, generation_config=settings).cpu()
    return output, time.perf_counter() - start
