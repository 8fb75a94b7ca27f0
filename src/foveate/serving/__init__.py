"""An OpenAI-compatible server of one model, with plans: `foveate serve`.

A request goes through `app` (HTTP), `protocol` (what a body may say), `sources` (where images may come from) and
`engine` (one thread that owns the model and answers requests in batches, token by token through `rows`).
"""

from foveate.serving.app import build
from foveate.serving.engine import Engine
from foveate.serving.limits import Limits
from foveate.serving.sources import Sources

__all__ = ["Engine", "Limits", "Sources", "build"]
