"""Python and shell code that repeats a question with its plan."""

from __future__ import annotations

import shlex

from foveate.app.by_hand import ByHand


def python_line(image: str, question: str, plan: str | ByHand | None, model: str | None = None) -> str:
    """Return the Python code of the question.

    Args:
        image: file name of the image.
        question: what is asked.
        plan: as text, or tokens chosen by hand; None: the full model.
        model: folder or Hub id; None: the embedded model.
    """
    named = "".join(f", {name}={value!r}" for name, value in (("model", model), ("plan", plan)) if value)
    imports = "import foveate\n"
    if isinstance(plan, ByHand):
        imports += f"from {ByHand.__module__} import {ByHand.__name__}\n"
    return f"{imports}\nprint(foveate.ask({image!r}, {question!r}{named}).text)"


def shell_line(image: str, question: str, plan: str | ByHand | None, model: str | None = None) -> str:
    """Return the shell command of the question; arguments as in `python_line`."""
    if isinstance(plan, ByHand):
        return "# Tokens chosen by hand have no plan as text: use the Python code."
    words = ["foveate", "ask"]
    for option, value in (("--model", model), ("--plan", plan)):
        if value:
            words += [f"{option}={value}"] if value.startswith("-") else [option, value]
    words += ["--"] if image.startswith("-") or question.startswith("-") else []
    return shlex.join([*words, image, question])
