"""Result of a served request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.answering.conversations import ImageTokens
from foveate.serving.generation import TokenLogprob


@dataclass(frozen=True)
class Result:
    """Complete answer.

    Args:
        text: Complete text.
        reason: "stop", "length" or "cancelled".
        prompt_tokens: Tokens of the shortened prompt that the language model reads.
        completion_tokens: Tokens written.
        images: Counts of the visual tokens.
        plan: The plan as text, or None for the full model.
        chances: How likely each token was, where that was asked for.
    """

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    images: ImageTokens
    plan: str | None
    logprobs: tuple[TokenLogprob, ...] | None = None


def usage_of(results: Sequence[Result]) -> dict[str, Any]:
    """Return the token usage of the answers to one request under OpenAI's names, with visual token counts."""
    first, written = results[0], sum(result.completion_tokens for result in results)
    before, kept, exact, clips_before, clips_kept = first.images
    read = int(exact) if exact == int(exact) else round(exact, 2)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": first.prompt_tokens + written,
        "prompt_tokens_details": {
            "text_tokens": first.prompt_tokens - kept,
            "image_tokens": kept - clips_kept,
            "image_tokens_saved": before - kept - (clips_before - clips_kept),
            **({"video_tokens": clips_kept, "video_tokens_saved": clips_before - clips_kept} if clips_before else {}),
        },
        "foveate": {
            "plan": first.plan,
            "visual_tokens": before,
            "visual_tokens_read": read,
            "visual_tokens_saved": round(before - read, 2),
        },
    }
