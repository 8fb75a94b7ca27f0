"""Python and shell code that repeats a question with its plan."""

from __future__ import annotations

import shlex
from typing import Any

from foveate.app.by_hand import ByHand

#: Maximum number of tokens of an answer that `foveate.ask` and `foveate ask` take by themselves.
MOST_TOKENS = 128


def python_line(
    image: str,
    question: str,
    plan: str | ByHand | None,
    model: str | None = None,
    max_new_tokens: int = MOST_TOKENS,
) -> str:
    """Return the Python code of the question.

    Args:
        image: file name of the image.
        question: what is asked.
        plan: as text, or tokens chosen by hand; None: the full model.
        model: folder or Hub id; None: the embedded model.
        max_new_tokens: length at which the answer is cut off.
    """
    named = "".join(f", {name}={value!r}" for name, value in _options(plan, model, max_new_tokens).items())
    imports = "import foveate\n"
    if isinstance(plan, ByHand):
        imports += f"from {ByHand.__module__} import {ByHand.__name__}\n"
    return f"{imports}\nprint(foveate.ask({image!r}, {question!r}{named}).text)"


def shell_line(
    image: str,
    question: str,
    plan: str | ByHand | None,
    model: str | None = None,
    max_new_tokens: int = MOST_TOKENS,
) -> str:
    """Return the shell command of the question; arguments as in `python_line`."""
    if isinstance(plan, ByHand):
        return "# Tokens chosen by hand have no plan as text: use the Python code."
    words = ["foveate", "ask"]
    for name, value in _options(plan, model, max_new_tokens).items():
        option, text = f"--{name.replace('_', '-')}", str(value)
        words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    words += ["--"] if image.startswith("-") or question.startswith("-") else []
    return shlex.join([*words, image, question])


def _options(plan: str | ByHand | None, model: str | None, max_new_tokens: int) -> dict[str, Any]:
    """What is asked with besides the image and the question, by keyword: only what is not the default."""
    limit = None if max_new_tokens == MOST_TOKENS else max_new_tokens
    return {name: value for name, value in (("model", model), ("plan", plan), ("max_new_tokens", limit)) if value}
