"""Request fields: ignored ones, unsupported ones, and validation messages."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from foveate.core.errors import FoveateError


class FieldError(FoveateError):
    """A field of the request is invalid or unsupported.

    Args:
        field: Which, as in `messages[0].content[1].image_url.url`.
        reason: What is wrong and what is possible, or an error with that message.
    """

    def __init__(self, field: str, reason: str | FoveateError) -> None:
        super().__init__(f"{field}: {reason}" if field else str(reason))
        self.field = field
        self.refusal = reason.refusal if isinstance(reason, FoveateError) else None


#: Fields of OpenAI's API and of other servers with the values at which they ask for what happens anyway.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "best_of": (1,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "echo": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}

#: Kinds of the parts of a message.
PARTS = ("text", "image_url", "video_url", "refusal")
_NO_TOOLS = "models call no tools here; leave it out"
_NO_AUDIO = "answers are text alone, without sound; leave it out"
#: Why known fields with other values are refused.
REASONS: Mapping[str, str] = {
    "tools": _NO_TOOLS,
    "tool_choice": _NO_TOOLS,
    "tool_calls": _NO_TOOLS,
    "tool_call_id": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "audio": _NO_AUDIO,
    "modalities": _NO_AUDIO,
    "logit_bias": "tokens cannot be made likelier or less likely one by one; leave it out",
    "reasoning_effort": "models do not reason before they answer here; leave it out",
    "verbosity": "the length of an answer follows the question and max_tokens; leave it out",
    "refusal": "a message of the assistant has content or a refusal, not both; leave one of them out",
    "web_search_options": "nothing is searched here; leave it out",
    "best_of": "ask for several answers with n, and choose among them",
    "response_format": "answers cannot be held to a format; ask for it in the prompt, and leave this out",
}


def without_empty(value: Any, known: Mapping[str, Any]) -> Any:
    """Remove null fields, and unsupported fields with empty or neutral values."""
    if not isinstance(value, dict):
        return value
    return {
        name: item
        for name, item in value.items()
        if item is not None and (name in known or not _says_nothing(name, item))
    }


def _says_nothing(name: Any, value: Any) -> bool:
    if isinstance(value, (list, dict, str)) and not value:
        return True
    # 0 == False and 1 == True, but a client that writes one for the other has made a mistake.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NEUTRAL.get(name, ())
    )


_KINDS: Mapping[str, str] = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def problem(error: ValidationError) -> FieldError:
    """Return the first validation error of a request with the name of its field."""
    first = error.errors(include_url=False)[0]
    place, kind, context, shown = [*first["loc"]], first["type"], first.get("ctx", {}), _shown(first.get("input"))
    if place[:1] == ["messages"] and place[2:3] == ["content"] and len(place) > 4:
        del place[4]  # pydantic names the kind of the part, which is no field
    name = str(place[-1]) if place else ""
    if kind == "missing":
        reason = "this field is missing"
    elif kind == "extra_forbidden":
        reason = REASONS.get(name, "this server does not know or support this field; leave it out")
    elif kind == "union_tag_not_found":
        place, reason = [*place, "type"], f"this field is missing; possible are {', '.join(PARTS)}"
    elif kind == "union_tag_invalid":
        place = [*place, "type"]
        reason = f"{_shown(context['tag'])} is not possible; possible are {', '.join(PARTS)}"
    elif kind == "literal_error":
        reason = f"{shown} is not possible; possible is {context['expected']}"
        if "or" in context["expected"]:
            reason = reason.replace("possible is ", "possible are ")
    elif kind in _KINDS:
        wanted = 'an object, {"url": ...}' if name in ("image_url", "video_url") else _KINDS[kind]
        reason = f"it must be {wanted}, not {shown}"
    elif kind == "unserved":
        reason = first["msg"]
    else:
        reason = f"{first['msg'].replace('Input should', 'it must').replace('should', 'must')}, not {shown}"
    return FieldError(path(place), f"{reason}.")


def path(place: list[Any]) -> str:
    """Format names and indices as the path of a field: `messages[0].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")[:200]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return reprlib.repr(value)
