"""Chat completion requests of OpenAI's API.

What would change an answer and is not built (tools, formats, sound ...) is refused by name with the reason, not passed
over. A field that is null, or empty where it is not built, is as if left out: clients send all the fields that they
know. What is accepted and changes nothing (`user`, `detail` ...) is named in a header of the answer.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from foveate.core.acquisition import calls_again
from foveate.core.errors import FoveateError, check_text
from foveate.core.full_model import is_full_model
from foveate.core.plan import Budget, Plan
from foveate.serving.fields import REASONS, FieldError, path, problem, without_empty

#: Deepest nesting of a body; messages need five.
DEEPEST = 32
#: Maximum numbers of stop texts and of alternatives per token, as in OpenAI's API.
MOST_STOPS, MOST_TOP = 4, 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        return without_empty(value, cls.model_fields)


class ImageURL(_Strict):
    """Location of an image: a data URI, a file under the server's root, or an address on an allowed host."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = Field(
        default="auto", description="No effect: the plan determines the number of tokens."
    )


class TextPart(_Strict):
    """Text part of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(_Strict):
    """Refusal in an assistant message."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """Text of the message."""
        return self.refusal


class ImagePart(_Strict):
    """Image part of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class VideoURL(_Strict):
    """Location of a video: a data URI, a file under the server's root, or an address on an allowed host."""

    url: str


class VideoPart(_Strict):
    """Video part of a message, as vLLM has it; OpenAI's API has none."""

    type: Literal["video_url"]
    video_url: VideoURL


Visual = ImagePart | VideoPart
Part = Annotated[TextPart | ImagePart | VideoPart | RefusalPart, Field(discriminator="type")]


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _or_text(schema: dict[str, Any]) -> None:
    """JSON schema of a list, or of a text that stands for a list of one."""
    schema["anyOf"] = [{"type": "string"}, {name: schema.pop(name) for name in ("type", "items")}]


class Message(_Strict):
    """Message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(json_schema_extra=_or_text)]
    name: str | None = Field(default=None, description="Handed to the chat template; most have no place for it.")

    @model_validator(mode="before")
    @classmethod
    def _answers_without_content(cls, value: Any) -> Any:
        # Answers that clients send back: the text may be null, with or without a refusal.
        if isinstance(value, dict) and value.get("role") == "assistant" and value.get("content") is None:
            refusal = value.get("refusal")
            rest = {name: item for name, item in value.items() if name not in ("content", "refusal")}
            return {**rest, "content": "" if refusal is None else refusal}
        return value

    @model_validator(mode="before")
    @classmethod
    def _calls_in_the_text(cls, value: Any) -> Any:
        # Of an answer whose call the client has followed. Its text holds the call, and is what the model reads.
        if isinstance(value, dict) and value.get("role") == "assistant" and _holds_call(value.get("content")):
            return {name: item for name, item in value.items() if name != "tool_calls"}
        return value


def _holds_call(content: Any) -> bool:
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return any(isinstance(text, str) and calls_again(text) for text in texts)


def _budget(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise PydanticCustomError("unserved", "write tokens (64), a share (0.25) or a text such as '25%'")
    return value


class Compression(_Strict):
    """Token compression of a request: a plan, or the server's plan with another budget."""

    plan: str | None = Field(default=None, max_length=2_000, description="As text: 'divprune:64'; 'full model': none.")
    budget: Annotated[
        Any,
        BeforeValidator(_budget),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "number"}]}),
    ] = Field(default=None, description="Tokens (64), a share (0.25), or either as text ('25%').")
    second_turn: Literal["server", "client"] = Field(
        default="server",
        description="Who follows a tool call of a model that asks for more of an image: the client gets tool_calls.",
    )


class StreamOptions(_Strict):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: bool = Field(default=False, description="Changes nothing: pieces are not padded.")


def _format(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("json_object", "json_schema"):
        raise PydanticCustomError("unserved", "{kind}: {reason}", {"kind": kind, "reason": REASONS["response_format"]})
    return value


class ResponseFormat(_Strict):
    """Format of an answer: text."""

    type: Literal["text"] = "text"


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_TEXTS = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_STOPS}
_STOP_SCHEMA = {"anyOf": [{"type": "string"}, _TEXTS, {"type": "null"}]}


class ChatRequest(_Strict):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, description="A larger number than the server's is made smaller.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The same as max_tokens.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0, the default: the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, description="0, the default, and -1: all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=10, description="1: none; by default that of the model's generation configuration."
    )
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[str] | None, Field(max_length=MOST_STOPS), BeforeValidator(_stops), WithJsonSchema(_STOP_SCHEMA)
    ] = Field(default=None, description="At which an answer ends.")
    n: int | None = Field(default=None, ge=1, description="Answers; the one with number i is drawn with seed + i.")
    logprobs: bool | None = Field(default=None, description="Log probabilities of the tokens, before temperature.")
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP, description="Number of alternatives per token.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: Annotated[ResponseFormat | None, BeforeValidator(_format)] = None
    foveate: Compression | None = None
    # accepted and of no effect on an answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts."""
        return tuple(text for text in self.stop or () if text)

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of an answer, as requested."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def choices(self) -> int:
        """Number of answers."""
        return self.n or 1

    @property
    def top(self) -> int | None:
        """Number of alternatives with log probabilities per token; None without log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def characters(self) -> int:
        """Number of characters of text."""
        return sum(len(part.text) for _, part in self._parts if not isinstance(part, Visual))

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(isinstance(part, ImagePart) for _, part in self._parts)

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(isinstance(part, VideoPart) for _, part in self._parts)

    @property
    def visuals(self) -> list[tuple[str, Literal["image", "video"], str]]:
        """Images and clips in order: the path of the field that holds the address, the kind, and the address."""
        found: list[tuple[str, Literal["image", "video"], str]] = []
        for place, part in self._parts:
            if isinstance(part, ImagePart):
                found.append((f"{place}.image_url.url", "image", part.image_url.url))
            elif isinstance(part, VideoPart):
                found.append((f"{place}.video_url.url", "video", part.video_url.url))
        return found

    @property
    def question(self) -> str:
        """Text of the last message of the user, by which frames of clips may be chosen."""
        last = next((message for message in reversed(self.messages) if message.role == "user"), None)
        return " ".join(part.text for part in last.content if isinstance(part, TextPart)) if last else ""

    @property
    def without_effect(self) -> list[str]:
        """Fields that are set but have no effect."""
        ignored = [name for name in _WITHOUT_EFFECT if getattr(self, name) not in (None, {}, "")]
        if self.stream_options is not None and (self.stream_options.include_obfuscation or not self.stream):
            ignored.append("stream_options")
        details = (part.image_url.detail for _, part in self._parts if isinstance(part, ImagePart))
        if any(detail != "auto" for detail in details):
            ignored.append("detail")
        return ignored

    @property
    def _parts(self) -> Iterator[tuple[str, TextPart | ImagePart | VideoPart | RefusalPart]]:
        for turn, message in enumerate(self.messages):
            for number, part in enumerate(message.content):
                yield path(["messages", turn, "content", number]), part

    def conversation(self, visuals: list[Any]) -> list[dict[str, Any]]:
        """Return the messages in the format of `transformers`, with PIL images and clips in place of addresses."""
        remaining = iter(visuals)
        messages = []
        for message in self.messages:
            content = [
                {"type": "text", "text": part.text}
                if not isinstance(part, Visual)
                else {"type": "image", "image": next(remaining)}
                if isinstance(part, ImagePart)
                else {"type": "video", "video": next(remaining)}
                for part in message.content
            ]
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": content, **({"name": message.name} if message.name else {})})
        return messages


_WITHOUT_EFFECT = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prediction",
)  # fmt: skip


def parse(body: bytes) -> ChatRequest:
    """Parse and validate a request body.

    Raises:
        FoveateError: it is no JSON, or asks for something unsupported; the message names the field.
    """
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except FoveateError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FoveateError(f"the body is not JSON in UTF-8: {reason[:200]}.") from None
    if not isinstance(document, dict):
        raise FoveateError("the body must be a JSON object with 'model' and 'messages'.")
    if _is_nested_deeper_than(document, DEEPEST):
        raise FoveateError(f"the body is nested more than {DEEPEST} levels deep.")
    check_text(json.dumps(document, ensure_ascii=False), "the body")
    try:
        request = ChatRequest.model_validate(document)
    except ValidationError as error:
        raise problem(error) from None
    _check(request)
    return request


def _check(request: ChatRequest) -> None:
    """Check fields against each other."""
    if request.messages[-1].role == "assistant":
        raise FieldError("messages", "the last one must be of the user, since it is answered.")
    for turn, message in enumerate(request.messages):
        for number, part in enumerate(message.content):
            place = path(["messages", turn, "content", number, "type"])
            if isinstance(part, RefusalPart) and message.role != "assistant":
                raise FieldError(place, "only assistant messages may have a refusal.")
    if len({request.max_tokens, request.max_completion_tokens} - {None}) > 1:
        raise FieldError("max_tokens", "it differs from max_completion_tokens; remove one of them.")
    if request.top_logprobs and not request.logprobs:
        raise FieldError("top_logprobs", "it needs logprobs: true.")


def _no_constant(name: str) -> Any:
    raise FoveateError(f"the body is not JSON: it holds {name}, which JSON does not have.")


def _is_nested_deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than a limit, computed without recursion."""
    level = [value]
    for _ in range(levels):
        nested = [
            list(item.values()) if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))
        ]
        level = [inner for item in nested for inner in item]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)


def plan_of(requested: Compression | None, default: Plan | None) -> Plan | None:
    """Return the plan of a request.

    Args:
        requested: Compression options of the request.
        default: The server's plan.

    Raises:
        FoveateError: it is no plan, or one that reads files, or a budget where there is no one method to take it.
    """
    if requested is None or (requested.plan is None and requested.budget is None):
        return default
    if requested.plan is not None and requested.budget is not None:
        raise FieldError("foveate", "give a plan, which has its budget (divprune:64), or a budget, not both.")
    if requested.plan is not None:
        if is_full_model(requested.plan):
            return None
        with _about("foveate.plan"):
            plan = Plan.of(requested.plan)
        if default is None or str(plan) != str(default):
            refuse_files(plan)
        return plan
    for_model = None if default is None else default.for_model
    if default is None or for_model is None or len(for_model.steps) != 1:
        raise FieldError("foveate.budget", "the server has no plan of one method with a budget; give a plan.")
    step = for_model.steps[0]
    if step.method.budget == "none":
        raise FieldError("foveate.budget", f"{step.method.name} takes no budget; its own rule decides.")
    wanted = requested.budget
    with _about("foveate.budget"):
        budget = Budget(fraction=wanted) if isinstance(wanted, float) else Budget.parse(str(wanted))
    return Plan((*default.steps[:-1], replace(step, budget=budget)))


@contextmanager
def _about(field: str) -> Generator[None]:
    """Convert other errors to errors about one field."""
    try:
        yield
    except FoveateError as error:
        raise FieldError(field, error) from None


def refuse_files(plan: Plan) -> None:
    """Raise FoveateError for a plan that names files, which requests must not make the server read.

    Raises:
        FoveateError: the plan names one.
    """
    for step in plan.steps:
        method = step.method
        hints = typing.get_type_hints(type(method))
        for field in fields(method):
            name, value = field.name, getattr(method, field.name)
            if isinstance(value, str) and hints[name] is Any:  # another method, which may name files too
                refuse_files(Plan.of(f"{value}:1"))
                continue
            if (
                value
                and value != field.default
                and isinstance(value, (str, Path))
                and typing.get_origin(hints[name]) is not Literal
            ):
                raise FieldError(
                    "foveate.plan", f"{method.name}({name}=...) names a file, which only the server's own plan may do."
                )
