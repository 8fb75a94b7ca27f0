"""API description: /openapi.json, and /docs rendered from it without external resources."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from pydantic.json_schema import models_json_schema

from foveate import __version__
from foveate.serving.fields import NEUTRAL
from foveate.serving.limits import Limits
from foveate.serving.protocol import ChatRequest
from foveate.serving.responses import Chunk, Completion, ErrorBody

_REFS = "#/components/schemas/"
_CALLS = "Of an answer that is sent back; the model reads its text, which holds the call."
_NEUTRAL = "Accepted where it asks for what happens anyway."
_ERRORS = {
    400: "The request cannot be served; the message says why, and `param` names the field.",
    401: "A valid API key is needed.",
    404: "There is no such model.",
    408: "The request was not complete in time.",
    413: "The request is too long.",
    429: "The server has as much to do as it may; come again after `retry-after` seconds.",
    500: "The server failed on this request.",
    503: "The server cannot answer: it is ending or has failed.",
}
_HEADERS = {
    "x-foveate-max-tokens": "Maximum number of answer tokens, if the request asked for more.",
    "x-foveate-ignored": "Request fields that had no effect.",
}


def document(name: str, limits: Limits) -> dict[str, Any]:
    """Build the OpenAPI 3.1 document.

    Args:
        name: What clients call the model.
        limits: Of the server.
    """
    _, schemas = models_json_schema(
        [(ChatRequest, "validation"), *((model, "serialization") for model in (Completion, Chunk, ErrorBody))],
        ref_template=_REFS + "{model}",
    )
    definitions = schemas["$defs"]
    properties = definitions["ChatRequest"]["properties"]
    properties["max_tokens"]["description"] += f" Here: {limits.tokens}."
    properties["n"]["maximum"] = limits.batch
    properties |= {name: {"enum": list(values), "description": _NEUTRAL} for name, values in NEUTRAL.items()}
    calls = {"type": "array", "items": {"$ref": _REFS + "ToolCallPart"}, "description": _CALLS}
    definitions["Message"]["properties"]["tool_calls"] = calls
    example = {"model": name, "messages": [{"role": "user", "content": "What can you see?"}]}
    ok = {
        "description": "The answer, or its pieces as server-sent events with stream: true.",
        "headers": {key: {"description": text, "schema": {"type": "string"}} for key, text in _HEADERS.items()},
        "content": {
            "application/json": {"schema": {"$ref": _REFS + "Completion"}},
            "text/event-stream": {"schema": {"$ref": _REFS + "Chunk"}},
        },
    }
    failed = {
        str(status): {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": _REFS + "ErrorBody"}}},
        }
        for status, text in _ERRORS.items()
    }

    def plain(summary: str, kind: str = "application/json", secured: bool = False) -> dict[str, Any]:
        schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
        operation = {
            "summary": summary,
            "responses": {"200": {"description": "OK", "content": {kind: {"schema": schema}}}},
        }
        return {"get": {**operation, **({"security": [{"key": []}]} if secured else {})}}

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "foveate",
            "version": __version__,
            "description": f"Answers questions about images with the model {name}, with an OpenAI-compatible API.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "summary": "An answer to a conversation about images.",
                    "security": [{"key": []}],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": {"$ref": _REFS + "ChatRequest"}, "example": example}
                        },
                    },
                    "responses": {"200": ok, **failed},
                }
            },
            "/v1/models": plain("The one model.", secured=True),
            "/v1/models/{model}": {
                **plain("The model, if it has that name.", secured=True),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            },
            "/health": plain("Whether requests are taken (200, else 503), the plan, and how many requests wait."),
            "/metrics": plain("Counters for Prometheus.", "text/plain"),
        },
        "components": {
            "schemas": definitions,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
code { font-size: 90%; }
"""


def page(described: dict[str, Any]) -> str:
    """Render the document as HTML: every route, and every field of requests and responses."""
    info, schemas = described["info"], described["components"]["schemas"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>"]
    parts += ['<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p><h2>Routes</h2><table>']
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            if "summary" in route:
                parts.append(_row(f"<code>{method.upper()} {escape(path)}</code>", escape(route["summary"])))
    chat = described["paths"]["/v1/chat/completions"]["post"]
    example = json.dumps(chat["requestBody"]["content"]["application/json"]["example"])
    command = f"curl localhost:8000/v1/chat/completions -H 'content-type: application/json' -d '{example}'"
    parts.append(f"</table><pre>{escape(command)}</pre><h2>Answers by status and header</h2><table>")
    parts += [_row(status, escape(answer["description"])) for status, answer in chat["responses"].items()]
    parts += [
        _row(f"<code>{name}</code>", escape(header["description"]))
        for name, header in chat["responses"]["200"]["headers"].items()
    ]
    parts.append("</table>")
    for name in sorted(schemas, key=lambda name: (name != "ChatRequest", name != "Message", name)):
        parts.append(_schema(name, schemas[name]))
    return f'<!doctype html><meta charset="utf-8"><title>foveate</title><style>{_STYLE}</style>{"".join(parts)}\n'


def _schema(name: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = [
        _row(
            f"<code>{escape(field)}</code>",
            _kind(subschema) + (", required" if field in needed else ""),
            escape(subschema.get("description", "")),
        )
        for field, subschema in schema.get("properties", {}).items()
    ]
    about = f"<p>{escape(schema.get('description', ''))}</p>"
    return f'<h2 id="{escape(name)}">{escape(name)}</h2>{about}<table>{"".join(rows)}</table>'


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REFS))
        return f'<a href="#{name}">{name}</a>'
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_kind(value) for value in schema[choice] if value != {"type": "null"}))
    if "const" in schema or "enum" in schema:
        return " or ".join(escape(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    marks = (("minimum", "from {}"), ("exclusiveMinimum", "above {}"), ("maximum", "up to {}"))
    limits = [text.format(schema[mark]) for mark, text in marks if mark in schema]
    return escape(" ".join([schema.get("type", "anything"), *limits]))


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
