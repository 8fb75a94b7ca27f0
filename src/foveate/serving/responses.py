"""Responses of OpenAI's API; these classes define their JSON and its schema."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from foveate.serving.generation import TokenLogprob
from foveate.serving.result import Result

FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]


class PromptTokens(BaseModel):
    """Details of the prompt's tokens."""

    text_tokens: int
    image_tokens: int = Field(description="That the plan left in front of the language model.")
    image_tokens_saved: int = Field(description="That the plan took away there.")
    video_tokens: int | None = Field(default=None, description="The same of clips, where the request has some.")
    video_tokens_saved: int | None = Field(default=None, description="That the plan took away of these.")


class TurnTokens(BaseModel):
    """Tokens of one turn of an answer."""

    prompt_tokens: int = Field(description="Of its prompt, which repeats that of the turn before.")
    image_tokens: int = Field(description="Image tokens among them.")
    completion_tokens: int


class VisualTokenUsage(BaseModel):
    """Visual token counts before and after compression."""

    plan: str | None = Field(description="As text; null: the full model.")
    visual_tokens: int = Field(description="Before the plan.")
    visual_tokens_read: int | float = Field(description="That the language model worked on, the mean over its layers.")
    visual_tokens_saved: int | float = Field(description="visual_tokens less visual_tokens_read.")
    turns: list[list[TurnTokens]] | None = Field(
        default=None, description="Of every answer, where the model may ask for more of the image; prompts count again."
    )
    problems: list[str | None] | None = Field(
        default=None, description="Of every answer: why a tool call of the model was not followed."
    )


class Usage(BaseModel):
    """Token usage of a request over all choices."""

    prompt_tokens: int = Field(description="Of the shortened prompt that the language model was given.")
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    foveate: VisualTokenUsage


class Token(BaseModel):
    """A token with its log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="Of its text in UTF-8; null for a part of a character.")


class TokenLogprobs(Token):
    """A token of an answer with the most likely alternatives."""

    top_logprobs: list[Token]


class Logprobs(BaseModel):
    """Log probabilities of the tokens of a text."""

    content: list[TokenLogprobs]
    refusal: None = None


class CalledFunction(BaseModel):
    """Function that the model calls."""

    name: str
    arguments: str = Field(description="A JSON object.")


class ToolCallPart(BaseModel):
    """Tool call of the model, which the client follows."""

    index: int = 0
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ResponseMessage(BaseModel):
    """Message of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str = Field(description="As the model wrote it; what is sent back to follow a tool call.")
    refusal: None = None
    tool_calls: list[ToolCallPart] | None = Field(
        default=None, description="Where the request asks for foveate.second_turn: client."
    )


class Choice(BaseModel):
    """One answer."""

    index: int
    message: ResponseMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason = Field(description="cancelled: the server was shut down.")


class Completion(BaseModel):
    """Response with complete answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """Text added by a chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallPart] | None = None


class ChunkChoice(BaseModel):
    """Part of one answer in a chunk."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class Chunk(BaseModel):
    """Chunk of a streamed response; the last holds only usage if `stream_options.include_usage` is set."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ErrorDetails(BaseModel):
    """Details of an error."""

    message: str = Field(description="One sentence: what is wrong, and what is possible.")
    type: str
    param: str | None = Field(description="The field, as in messages[0].content[1].image_url.url.")
    code: str | None


class ErrorBody(BaseModel):
    """Error response."""

    error: ErrorDetails


def error_body(
    message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Build an error response of OpenAI's API."""
    return ErrorBody(error=ErrorDetails(message=message, type=kind, param=param, code=code)).model_dump()


class Writer:
    """Builder of the response to one request.

    Args:
        model: What clients call it.
    """

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def completion(self, results: Sequence[Result], usage: dict[str, Any]) -> Any:
        """Build a complete response from the result of every choice."""
        messages = [
            {
                "index": index,
                "message": {"content": result.text, **called(result)},
                "logprobs": _logprobs(result.logprobs),
                "finish_reason": result.reason,
            }
            for index, result in enumerate(results)
        ]
        return _without_acquisition(Completion.model_validate({**self._head, "choices": messages, "usage": usage}))

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> Any:
        """Build a chunk of a streamed response."""
        choice = {"index": index, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": reason}
        return Chunk.model_validate({**self._head, "choices": [choice]}).model_dump(exclude_unset=True) | {
            "object": "chat.completion.chunk"
        }

    def usage(self, usage: dict[str, Any]) -> Any:
        """Build the final chunk of a stream whose request asked for usage."""
        return _without_acquisition(Chunk.model_validate({**self._head, "choices": [], "usage": usage}))


def called(result: Result) -> dict[str, Any]:
    """Tool call of a result as a field of its message; nothing where there is none."""
    if result.call is None:
        return {}
    function = {"name": result.call.name, "arguments": json.dumps(result.call.arguments)}
    # Chunks hold what is set here alone, and clients put the pieces of a call together by its index.
    return {"tool_calls": [{"index": 0, "id": f"call-{uuid.uuid4().hex}", "type": "function", "function": function}]}


def _without_acquisition(body: Completion | Chunk) -> Any:
    """The JSON of a response without the fields of acquisitions that say nothing."""
    document = body.model_dump()
    for choice in document["choices"]:
        if choice["message"]["tool_calls"] is None:
            del choice["message"]["tool_calls"]
    counts = document["usage"]["foveate"]
    for name in ("turns", "problems"):
        if counts[name] is None:
            del counts[name]
    return document


def _logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    content = [
        {**_token(logprob.text, logprob.logprob), "top_logprobs": [_token(text, value) for text, value in logprob.top]}
        for logprob in logprobs
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    is_complete = "\ufffd" not in text
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if is_complete else None}
