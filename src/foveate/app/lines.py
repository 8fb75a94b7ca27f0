"""Python and shell code that repeats a question with its plan."""

from __future__ import annotations

import shlex

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
    options = {
        "model": model,
        "plan": plan,
        "max_new_tokens": max_new_tokens if max_new_tokens != MOST_TOKENS else None,
    }
    named = "".join(f", {name}={value!r}" for name, value in options.items() if value)
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
    for option, value in (("--model", model), ("--plan", plan)):
        if value:
            words += [f"{option}={value}"] if value.startswith("-") else [option, value]
    words += [] if max_new_tokens == MOST_TOKENS else ["--max-new-tokens", str(max_new_tokens)]
    words += ["--"] if image.startswith("-") or question.startswith("-") else []
    return shlex.join([*words, image, question])
