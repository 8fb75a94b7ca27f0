"""OpenAI-compatible server of one model with token compression: `foveate serve`.

A request goes through `app` (HTTP), `protocol` and `fields` (what a body may say), `sources` (where images may come
from) and `engine` (one thread that owns the model and answers requests in batches, token by token through
`generation`); `responses` builds the answer. `openapi` makes /openapi.json and /docs.
"""

from typing import Any

from foveate.serving.app import build, check_key, check_origins
from foveate.serving.engine import Engine
from foveate.serving.limits import Limits
from foveate.serving.listening import listening_socket
from foveate.serving.sources import Sources

#: How uvicorn reads HTTP: the way that is tested, whatever else is installed and would be taken in its place.
TRANSPORT: dict[str, Any] = {"loop": "asyncio", "http": "h11"}

__all__ = ["TRANSPORT", "Engine", "Limits", "Sources", "build", "check_key", "check_origins", "listening_socket"]
