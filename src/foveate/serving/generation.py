"""Generation state of one answer in a batch: incremental text, stop texts and sampling.

`transformers` streams batches of one only and samples all rows alike. Here every row has its own temperature, seed,
stop texts and length, and can be ended from outside, while the rows share each step of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

#: Below this a temperature is 0: scores divided by it are the likeliest token alone, or no numbers at all.
GREEDY = 1e-5
#: What an unfinished character of several bytes decodes to.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a row.

    Args:
        temperature: 0, or what is nearly 0, takes the likeliest token.
        top_p: Of the likeliest tokens that together have this probability one is drawn.
        top_k: One of so many of the likeliest tokens is drawn; 0 is all.
        min_p: Tokens with less than this share of the likeliest token's probability are not drawn.
        repetition_penalty: Makes tokens that prompt and answer have already less likely; None is the model's own.
        frequency_penalty: Taken from the score of a token for every time that the answer has it.
        presence_penalty: Taken from the score of a token that the answer has.
        seed: None draws anew every time.
        top_logprobs: Number of alternatives per token; None: no log probabilities.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    top_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the row uses greedy decoding."""
        return self.temperature < GREEDY

    @property
    def penalised(self) -> bool:
        """Whether tokens that were written already become less likely, or likelier."""
        return self.repetition_penalty not in (None, 1) or bool(self.frequency_penalty or self.presence_penalty)


@dataclass(frozen=True)
class TokenLogprob:
    """Log probability of a token, before temperature.

    Args:
        text: Of the token.
        logprob: Natural logarithm of its probability.
        top: The same of the likeliest tokens.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class FirstToken:
    """Event: the first token has been generated.

    Args:
        limit: Tokens that the answer may have.
    """

    limit: int


@dataclass(frozen=True)
class Piece:
    """Event: a piece of an answer's text.

    Args:
        text: That is new.
        chances: Of the tokens in it, where they were asked for.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class GenerationState:
    """Text of one answer during generation.

    White space at both ends is removed, as `foveate.ask` does; text that may be the beginning of a stop text is held
    back until it is known not to be.

    Args:
        tokenizer: Of the model.
        ends: Ids that end an answer.
        limit: Tokens that the answer may have.
        stops: Texts that end it and are not part of it.
        deliver: Called with every piece of text.
        cancelled: Says whether nobody waits for the answer any more.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: set[int],
        limit: int,
        stops: Sequence[str],
        deliver: Callable[[Piece], object],
        cancelled: Callable[[], bool],
    ) -> None:
        self.tokenizer, self.ends, self.limit, self.stops = tokenizer, ends, limit, tuple(stops)
        self.deliver, self.cancelled = deliver, cancelled
        self.ids: list[int] = []
        #: "stop", "length" or "cancelled" when the answer has ended.
        self.reason: str | None = None
        self.text = ""
        #: Of every token, where they were asked for, with the place in `text` at which it begins.
        self.logprobs: list[tuple[int, TokenLogprob]] = []
        self._delivered = self._delivered_logprobs = 0  # characters of `text` and chances that were delivered
        self._context = self._read = 0  # ids that the next decoding begins with, and those that are text already

    def add(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Add the next token; `reason` is set if it was the last."""
        if self.reason is not None:
            return
        if self.cancelled():
            self.reason = "cancelled"
            return
        ended = token in self.ends
        if not ended:
            self.ids.append(token)
            if logprob is not None:
                self.logprobs.append((len(self.text), logprob))
        last = ended or len(self.ids) >= self.limit
        self._decode(last)
        if (end := self._stopped()) is not None:
            self.text = self.text[:end]
            self.logprobs = [(place, logprob) for place, logprob in self.logprobs if place < end]
            self._finish("stop")
        elif last:
            self._finish("stop" if ended else "length")
        else:
            self._deliver(self._sure())

    def _decode(self, last: bool) -> None:
        """Add the text of new tokens; an unfinished character waits for its other tokens, unless there are no more."""
        # A token's text depends on the one before it, so the few last ones are decoded again with the new one.
        known = self.tokenizer.decode(self.ids[self._context : self._read], skip_special_tokens=True)
        text = self.tokenizer.decode(self.ids[self._context :], skip_special_tokens=True)
        if len(text) > len(known) and (last or not text.endswith(_UNFINISHED)):
            new = text[len(known) :]
            self.text += new if self.text else new.lstrip()
            self._context, self._read = self._read, len(self.ids)

    def _stopped(self) -> int | None:
        """Return the index of the earliest stop text."""
        places = [place for stop in self.stops if (place := self.text.find(stop)) >= 0]
        return min(places, default=None)

    def _sure(self) -> int:
        """Count the leading characters that no later token can change: no trailing white space or partial stop text."""
        end = len(self.text)
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self.text)), 0, -1):
                if self.text.endswith(stop[:length]):
                    end = min(end, len(self.text) - length)
                    break
        return len(self.text[:end].rstrip())

    def _deliver(self, end: int) -> None:
        last = len(self.logprobs) if end == len(self.text) else sum(place < end for place, _ in self.logprobs)
        if end > self._delivered or last > self._delivered_logprobs:
            self.deliver(
                Piece(
                    self.text[self._delivered : end],
                    tuple(logprob for _, logprob in self.logprobs[self._delivered_logprobs : last]),
                )
            )
            self._delivered, self._delivered_logprobs = end, last

    def _finish(self, reason: str) -> None:
        self.text = self.text.rstrip()
        self._deliver(len(self.text))
        self.reason = reason


class LogprobRecorder(LogitsProcessor):
    """Logits processor that records log probabilities for the rows that request them.

    Args:
        sampling: Of every row.
        tokenizer: Of the model.
    """

    def __init__(self, sampling: Sequence[Sampling], tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.top_logprobs = {
            row: settings.top_logprobs for row, settings in enumerate(sampling) if settings.top_logprobs is not None
        }
        self._recorded: dict[int, Tensor] = {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores (B, V) unchanged."""
        self._recorded = {row: scores[row].float().log_softmax(dim=-1) for row in self.top_logprobs}
        return scores

    def of(self, row: int, token: int) -> TokenLogprob | None:
        """Return the log probability of a row's last token, or None if it was not requested."""
        if row not in self._recorded:
            return None
        recorded = self._recorded[row]
        values, ids = recorded.topk(min(self.top_logprobs[row], len(recorded)))
        top = zip(map(self._text, ids.tolist()), values.tolist(), strict=True)
        return TokenLogprob(self._text(token), float(recorded[token]), tuple(top))

    def _text(self, token: int) -> str:
        """What a token adds to a text: alone, its first space may be left out, as tokenizers of Llama do."""
        return self.tokenizer.decode([token, token])[len(self.tokenizer.decode([token])) :]


class StopCriterion(StoppingCriteria):
    """Stopping criterion that passes each row its new token and ends complete rows.

    Args:
        rows: Of the batch, in order.
        stepped: Called after every step of the model.
        chances: Of the tokens.
    """

    def __init__(
        self, rows: Sequence[GenerationState], stepped: Callable[[], object], logprobs: LogprobRecorder
    ) -> None:
        self.rows, self.stepped, self.logprobs = rows, stepped, logprobs

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return (B,) bool, which rows are complete."""
        self.stepped()
        for number, (row, token) in enumerate(zip(self.rows, input_ids[:, -1].tolist(), strict=True)):
            row.add(token, self.logprobs.of(number, token) if row.reason is None else None)
        return torch.tensor([row.reason is not None for row in self.rows], device=input_ids.device)


class Sampler(LogitsProcessor):
    """Logits processor that samples a token per row and masks all others.

    Args:
        sampling: Of every row.
        device: Where logits are.
    """

    def __init__(self, sampling: Sequence[Sampling], device: torch.device) -> None:
        self.warpers = [_warpers(settings) for settings in sampling]
        self.generators = [torch.Generator(device) for _ in sampling]
        for settings, generator in zip(sampling, self.generators, strict=True):
            if settings.seed is None:
                generator.seed()
            else:
                generator.manual_seed(settings.seed % 2**63)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores (B, V) with all but the sampled token at minus infinity, in rows that sample."""
        drawn = scores.clone()
        for row, (warpers, generator) in enumerate(zip(self.warpers, self.generators, strict=True)):
            if warpers is not None:
                warped = warpers(input_ids[row : row + 1], scores[row : row + 1].float())
                token = torch.multinomial(warped.softmax(dim=-1), 1, generator=generator)[0]
                drawn[row] = -torch.inf
                drawn[row, token] = 0
        return drawn


def _warpers(settings: Sampling) -> LogitsProcessorList | None:
    """What changes the scores of a row before a token is drawn, in the order of `generate`; None in greedy decoding."""
    if settings.greedy:
        return None
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        warpers.append(MinPLogitsWarper(settings.min_p))
    return warpers


class Penalties(LogitsProcessor):
    """Logits processor with penalties per row for tokens that were written already, in the order of vLLM.

    Args:
        sampling: Of every row, with a repetition penalty.
        padding: Tokens before every row's prompt, which are not the row's own.
        prompt: Tokens of the longest prompt; the answer begins after them.
    """

    def __init__(self, sampling: Sequence[Sampling], padding: Sequence[int], prompt: int) -> None:
        self.rows = {
            row: (settings, begin, _repetition(settings))
            for row, (settings, begin) in enumerate(zip(sampling, padding, strict=True))
            if settings.penalised
        }
        self.prompt = prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores (B, V) with the penalties applied."""
        penalised = scores.clone()
        for row, (settings, begin, repetition) in self.rows.items():
            if repetition is not None:
                penalised[row] = repetition(input_ids[row : row + 1, begin:], scores[row : row + 1])[0]
            if settings.frequency_penalty or settings.presence_penalty:
                counts = torch.bincount(input_ids[row, self.prompt :], minlength=scores.shape[1]).to(scores)
                penalised[row] -= settings.frequency_penalty * counts + settings.presence_penalty * counts.clamp(max=1)
        return penalised


def _repetition(settings: Sampling) -> RepetitionPenaltyLogitsProcessor | None:
    penalty = settings.repetition_penalty
    return None if penalty in (None, 1) else RepetitionPenaltyLogitsProcessor(float(penalty))
