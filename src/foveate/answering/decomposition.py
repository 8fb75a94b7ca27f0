"""Ask about a clip in steps: sub-questions first, and the question with their answers."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from foveate.answering.answer import Answer
from foveate.answering.asking import ask, check_unattached, model_of, opened, sources_of
from foveate.answering.conversations import answer_batch
from foveate.clips import Clip
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan

#: What a language model is asked for; `{question}` is the question.
REQUEST = (
    "Split a question about a video into simpler questions whose answers help to answer it. Ask how things change and "
    "move and what happens in which order, not what one frame shows. Write one question a line and nothing else.\n\n"
    "Question: {question}"
)

#: Most new tokens of the list of sub-questions, where the asked model writes it itself.
LIST_TOKENS = 256


@dataclass(frozen=True)
class DecomposedAnswer:
    """An answer by way of sub-questions.

    Attributes:
        answer: The answer to the question; its `question` begins with the answers to the sub-questions.
        steps: The answers to the sub-questions, in order; empty where the language model wrote no question.
    """

    answer: Answer
    steps: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """The text of the answer."""
        return self.answer.text

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values; ``steps`` are the answers to the sub-questions."""
        return self.answer.to_dict() | {"steps": [step.to_dict() for step in self.steps]}


def ask_decomposed(
    clip: Any,
    question: str,
    model: str | os.PathLike[str] | tuple[Any, Any] | None = None,
    plan: Any = None,
    budget: Any = None,
    *,
    language_model: Callable[[str], str] | None = None,
    most: int = 8,
    step_tokens: int = 64,
    max_new_tokens: int = 128,
    on_step: Callable[[Answer], object] | None = None,
    stream: Callable[[str], object] | None = None,
    draft: Any = None,
    system: str | None = None,
    **loading: Any,
) -> DecomposedAnswer:
    """Answer a question about a clip with the answers to simpler questions that a language model makes of it.

    The question decomposition of D-CoDe (arXiv 2510.08818). Every sub-question is asked about the same frames under the
    same plan; whole sentences of the answers are put before the question. The authors ask gpt-3.5-turbo for a Python
    list, with sampling, and write "video" for "image" in the answers; the request here is in our own words, and answers
    stay as they are.

    Args:
        clip: A file, an address, a data URI or a `foveate.clips.Clip`, as `ask` takes it.
        question: The question, which also chooses frames where the plan does so by a question.
        model: As in `ask`.
        plan: As in `ask`, such as ``"diverse-frames(encoder=openai/clip-vit-large-patch14):15 + dcode"``.
        budget: As in `ask`.
        language_model: Returns the text that a language model writes for a prompt: questions on lines of their own, or
            a list of strings. None: the model that is asked, without the clip and without the plan.
        most: Sub-questions that are asked; more are left out.
        step_tokens: Most new tokens of the answer to a sub-question.
        max_new_tokens: Most new tokens of the answer.
        on_step: Called with the answer to each sub-question as soon as it is known.
        stream: Callback for each piece of the answer's text, as in `ask`.
        draft: As in `ask`, for sub-questions too.
        system: As in `ask`, for sub-questions too.
        loading: As in `ask`.

    Raises:
        FoveateError: as `ask`, an image is given, or the language model does not return text.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise FoveateError(f"most is a number of sub-questions, 1 or more, not {most!r}.")
    if not isinstance(question, str) or not question.strip():
        raise FoveateError("the question is empty; ask something about the clip.")
    if plan is None and budget is not None:
        raise FoveateError(f"a budget of {budget} needs a plan, such as plan='dcode'.")
    wanted = None if plan is None else Plan.of(plan, budget)
    sampler, followed = (None, None) if wanted is None else (wanted.frame_step, wanted.for_model)
    visuals = opened(sources_of(clip), sampler, question)
    if len(visuals) > 1 or not isinstance(visuals[0], Clip):
        raise FoveateError(
            "a question is asked in steps about one clip, not about images; ask about them without steps."
        )
    net, processor, name = model_of(model, wanted is None, loading)
    if wanted is not None:
        check_unattached(net)
    request = REQUEST.format(question=question.strip())
    if language_model is None:
        (written,) = answer_batch(net, processor, [[{"role": "user", "content": request}]], LIST_TOKENS)
    else:
        written = language_model(request)
        if not isinstance(written, str):
            raise FoveateError(f"language_model returns the text that it writes, not {type(written).__name__}.")

    def answered(text: str, tokens: int, stream: Callable[[str], object] | None = None) -> Answer:
        pair = net, processor
        answer = ask(visuals, text, pair, followed, max_new_tokens=tokens, stream=stream, draft=draft, system=system)
        return replace(answer, model=name, plan=answer.plan if wanted is None else str(wanted))

    steps = []
    for one in sub_questions(written)[:most]:
        steps.append(answered(one, step_tokens))
        if on_step is not None:
            on_step(steps[-1])
    known = " ".join(filter(None, (whole_sentences(step.text) for step in steps)))
    final = f"{known}\n{question}" if known else question
    return DecomposedAnswer(answered(final, max_new_tokens, stream), tuple(steps))


def sub_questions(text: str) -> list[str]:
    """Questions in the text of a language model: a list of strings, or lines that end with a question mark."""
    found = re.search(r"\[.*\]", text, re.DOTALL)
    if found:
        try:
            listed = ast.literal_eval(found[0])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            listed = None
        if isinstance(listed, list) and all(isinstance(one, str) for one in listed):
            return [one.strip() for one in listed if one.strip()]
    lines = (re.sub(r"^\s*(?:[-*\u2022]|\(?\d+[.):])?\s*", "", line).strip().strip("\"'") for line in text.splitlines())
    return [line for line in lines if len(line) > 1 and line.endswith("?")]


def whole_sentences(text: str) -> str:
    """The text up to the last end of a sentence; one that was cut off is left out."""
    found = re.match(r".*[.!?](?=\s|$)", text, re.DOTALL)
    return found[0].strip() if found else ""
