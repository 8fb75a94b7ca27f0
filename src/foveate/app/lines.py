"""Python and shell code that repeats a question with its plan."""

from __future__ import annotations

import shlex


def python_line(image: str, question: str, plan: str | None, model: str | None = None) -> str:
    """Return the Python code of the question.

    Args:
        image: file name of the image.
        question: what is asked.
        plan: as text; None: the full model.
        model: folder or Hub id; None: the embedded model.
    """
    named = "".join(f", {name}={value!r}" for name, value in (("model", model), ("plan", plan)) if value)
    return f"import foveate\n\nprint(foveate.ask({image!r}, {question!r}{named}).text)"


def shell_line(image: str, question: str, plan: str | None, model: str | None = None) -> str:
    """Return the shell command of the question; arguments as in `python_line`."""
    words = ["foveate", "ask"]
    for option, value in (("--model", model), ("--plan", plan)):
        if value:
            words += [f"{option}={value}"] if value.startswith("-") else [option, value]
    words += ["--"] if image.startswith("-") or question.startswith("-") else []
    return shlex.join([*words, image, question])
