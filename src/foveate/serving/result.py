"""What a server answers a request with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.answering.conversations import ImageTokens
from foveate.serving.rows import Chance


@dataclass(frozen=True)
class Result:
    """A complete answer.

    Args:
        text: The whole text.
        reason: "stop", "length" or "cancelled".
        prompt_tokens: Tokens of the shortened prompt that the language model was given.
        completion_tokens: Tokens written.
        images: What became of the visual tokens.
        plan: The plan as text, None for the model as it is.
        chances: How likely each token was, where that was asked for.
    """

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    images: ImageTokens
    plan: str | None
    chances: tuple[Chance, ...] | None = None


def usage_of(results: Sequence[Result]) -> dict[str, Any]:
    """Tokens of the answers to one request as OpenAI's API names them, and what became of the visual tokens."""
    first, written = results[0], sum(result.completion_tokens for result in results)
    before, given, exact = first.images
    read = int(exact) if exact == int(exact) else round(exact, 2)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": first.prompt_tokens + written,
        "prompt_tokens_details": {
            "text_tokens": first.prompt_tokens - given,
            "image_tokens": given,
            "image_tokens_saved": before - given,
        },
        "foveate": {
            "plan": first.plan,
            "visual_tokens": before,
            "visual_tokens_read": read,
            "visual_tokens_saved": round(before - read, 2),
        },
    }
