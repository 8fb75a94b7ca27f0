"""Result of a served request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.answering.conversations import ImageTokens
from foveate.core.acquisition import ToolCall
from foveate.serving.generation import TokenLogprob


@dataclass(frozen=True)
class TurnUsage:
    """Tokens of one turn under an acquisition.

    Args:
        prompt_tokens: Tokens of its prompt, which repeats the earlier turn's.
        image_tokens: Image tokens among them.
        completion_tokens: Tokens written.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Result:
    """Complete answer.

    Args:
        text: Complete text.
        reason: "stop", "length" or "cancelled".
        prompt_tokens: Tokens of the shortened prompt that the language model reads; of all turns, where there are two.
        completion_tokens: Tokens written.
        images: Counts of the visual tokens.
        plan: The plan as text, or None for the full model.
        logprobs: How likely each token was, where that was asked for.
        turns: Tokens of the turns under an acquisition; empty without one.
        call: Tool call that is handed to the client.
        problem: Why a tool call was not followed.
    """

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    images: ImageTokens
    plan: str | None
    logprobs: tuple[TokenLogprob, ...] | None = None
    turns: tuple[TurnUsage, ...] = ()
    call: ToolCall | None = None
    problem: str | None = None


def usage_of(results: Sequence[Result]) -> dict[str, Any]:
    """Return the token usage of the answers to one request under OpenAI's names, with visual token counts.

    Under an acquisition, prompts of all turns of all answers count; `visual_tokens` is the original image's number, and
    `visual_tokens_read` what is in the context of the first answer at the end.
    """
    first, written = results[0], sum(result.completion_tokens for result in results)
    before, kept, exact, clips_before, clips_kept = first.images
    read = int(exact) if exact == int(exact) else round(exact, 2)
    prompts, whole = first.prompt_tokens, before
    acquired: dict[str, Any] = {}
    if first.turns:  # which differ between answers
        prompts, whole = sum(result.prompt_tokens for result in results), before * len(results)
        kept = sum(turn.image_tokens for result in results for turn in result.turns)
        acquired["turns"] = [[asdict(turn) for turn in result.turns] for result in results]
        acquired["problems"] = [result.problem for result in results]
    return {
        "prompt_tokens": prompts,
        "completion_tokens": written,
        "total_tokens": prompts + written,
        "prompt_tokens_details": {
            "text_tokens": prompts - kept,
            "image_tokens": kept - clips_kept,
            "image_tokens_saved": whole - kept - (clips_before - clips_kept),
            **({"video_tokens": clips_kept, "video_tokens_saved": clips_before - clips_kept} if clips_before else {}),
        },
        "foveate": {
            "plan": first.plan,
            "visual_tokens": before,
            "visual_tokens_read": read,
            "visual_tokens_saved": round(before - read, 2),
            **acquired,
        },
    }
