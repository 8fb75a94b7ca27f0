"""What a chat request may say, in the words of OpenAI's API, and what is answered.

What would change an answer and is not built (tools, several choices, log probabilities ...) is refused by name, not
passed over; what changes nothing (`user`, `metadata`, `store` ...) is accepted.
"""

from __future__ import annotations

import json
import time
import typing
import uuid
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveate.errors import FoveateError, check_text
from foveate.plan import Budget, Plan

#: Deepest nesting of a body; messages need five.
DEEPEST = 32
#: A plan's name for the model as it is.
UNTOUCHED = "untouched"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageURL(_Strict):
    """Where an image is: a data URI, a file under the server's root, or an address on an allowed host."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None


class Compression(_Strict):
    """What a request wants of the visual tokens: a plan, or the server's plan with another budget."""

    plan: str | None = Field(default=None, max_length=2_000)
    budget: str | int | float | None = None


class StreamOptions(_Strict):
    """What a stream holds beside text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, strict=False)
    top_p: float | None = Field(default=None, gt=0, le=1, strict=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    foveate: Compression | None = None
    # accepted where they ask for what happens anyway
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    # accepted and of no effect on an answer
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which an answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def characters(self) -> int:
        """Characters of text."""
        texts = (
            part.text
            for message in self.messages
            for part in ([] if isinstance(message.content, str) else message.content)
            if isinstance(part, TextPart)
        )
        plain = (message.content for message in self.messages if isinstance(message.content, str))
        return sum(map(len, texts)) + sum(map(len, plain))

    @property
    def urls(self) -> list[str]:
        """Where the images are, in order."""
        return [
            part.image_url.url
            for message in self.messages
            for part in ([] if isinstance(message.content, str) else message.content)
            if isinstance(part, ImagePart)
        ]

    def conversation(self, images: list[Any]) -> list[dict[str, Any]]:
        """The messages as `transformers` takes them, with PIL images in place of addresses."""
        left = iter(images)
        found = []
        for message in self.messages:
            parts = (
                [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
            )
            content = [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": next(left)}
                for part in parts
            ]
            found.append({"role": "system" if message.role == "developer" else message.role, "content": content})
        return found


def parse(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        FoveateError: it is no JSON, or says what cannot be done; the sentence names the field.
    """
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except FoveateError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FoveateError(f"the body is no JSON in UTF-8: {reason[:200]}.") from None
    if not isinstance(document, dict):
        raise FoveateError("the body must be a JSON object with 'model' and 'messages'.")
    if _deeper_than(document, DEEPEST):
        raise FoveateError(f"the body is nested more than {DEEPEST} levels deep.")
    check_text(json.dumps(document, ensure_ascii=False), "the body")
    try:
        request = ChatRequest.model_validate(document)
    except ValidationError as error:
        raise FoveateError(_sentence(error)) from None
    if len(request.stops) > 4:
        raise FoveateError("stop: at most 4 texts can end an answer.")
    if request.messages[-1].role == "assistant":
        raise FoveateError("messages: the last one must be of the user, since an answer to it is asked for.")
    return request


def _no_constant(name: str) -> Any:
    raise FoveateError(f"the body is no JSON: it holds {name}, which JSON does not have.")


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper, found without recursion."""
    level = [value]
    for _ in range(levels):
        nested = [
            list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))
        ]
        level = [inner for one in nested for inner in one]
        if not level:
            return False
    return any(isinstance(one, (dict, list)) for one in level)


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:200]
    if first["type"] == "extra_forbidden":
        return f"{place}: this server does not know or support this field; leave it out."
    return f"{place}: {first['msg']}."


def plan_of(asked: Compression | None, own: Plan | None) -> Plan | None:
    """The plan of a request.

    Args:
        asked: What it says.
        own: The server's plan.

    Raises:
        FoveateError: it is no plan, or one that reads files, or a budget where there is no one method to take it.
    """
    if asked is None or (asked.plan is None and asked.budget is None):
        return own
    if asked.plan is not None and asked.budget is not None:
        raise FoveateError("foveate: give a plan, which has its budget (divprune:64), or a budget, not both.")
    if asked.plan is not None:
        if asked.plan.strip().lower() == UNTOUCHED:
            return None
        plan = Plan.of(asked.plan)
        if own is None or str(plan) != str(own):
            refuse_files(plan)
        return plan
    if own is None or len(own.steps) != 1:
        raise FoveateError("foveate.budget: the server has no plan of one method that could take it; give a plan.")
    step = own.steps[0]
    if step.method.budget == "none":
        raise FoveateError(f"foveate.budget: {step.method.name} takes no budget; its own rule decides.")
    asked_budget = asked.budget
    budget = Budget(fraction=asked_budget) if isinstance(asked_budget, float) else Budget.parse(str(asked_budget))
    return Plan((replace(step, budget=budget),))


def refuse_files(plan: Plan) -> None:
    """Requests choose among what the server has; they do not name files for it to read.

    Raises:
        FoveateError: the plan names one.
    """
    for step in plan.steps:
        method = step.method
        hints = typing.get_type_hints(type(method))
        for name in (field.name for field in fields(method)):
            value = getattr(method, name)
            if value and isinstance(value, (str, Path)) and typing.get_origin(hints[name]) is not Literal:
                raise FoveateError(
                    f"foveate.plan: {method.name}({name}=...) names a file, which only the server's own plan may do."
                )


def new_id() -> str:
    """An id for a completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """An error as clients of OpenAI's API expect it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def completion(identity: str, model: str, text: str, reason: str, usage: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return _head(identity, model, "chat.completion") | {"choices": [choice], "usage": usage}


def chunk(identity: str, model: str, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _head(identity, model, "chat.completion.chunk") | {"choices": [choice]}


def usage_chunk(identity: str, model: str, usage: dict[str, Any]) -> dict[str, Any]:
    """The last piece of a stream whose request asked for usage."""
    return _head(identity, model, "chat.completion.chunk") | {"choices": [], "usage": usage}


def _head(identity: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}
