"""Ask one question about one image."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import TextStreamer

from foveate.answering.answer import Answer, Tokens
from foveate.answering.conversations import check_length, greedy, inputs_of, placeholders, tokenizer_of
from foveate.answering.pooling import pooling_of
from foveate.answering.selections import placed, seen_of, selected
from foveate.answering.stages import stages_of, with_plan
from foveate.answering.trace import Trace
from foveate.core.errors import FoveateError, check_text
from foveate.core.plan import Plan
from foveate.images import open_image
from foveate.loading import load
from foveate.runtime import compress, handle_of, speculate


def ask(
    image: Any,
    question: str,
    model: str | os.PathLike[str] | tuple[Any, Any] | None = None,
    plan: Any = None,
    budget: Any = None,
    *,
    max_new_tokens: int = 128,
    stream: Callable[[str], object] | None = None,
    keep_pooling: bool = False,
    draft: Any = None,
) -> Answer:
    """Answer one question about one image with greedy decoding, so that the same question gets the same answer.

    Args:
        image: a path, bytes, a PIL image or an array (see `foveate.images.open_image`).
        question: the question, in plain words. Text that the model's tokenizer would take for a control token, such
            as ``<image>``, is asked as text.
        model: a folder or Hub id, or ``(model, processor)`` as `load` returns them; the embedded model by default. The
            last model loaded by name is kept for the next question.
        plan: token compression for this question: anything that `foveate.compress` takes,
            such as ``"divprune:25%"``. By default the plan that is attached to the model or saved with it, if any.
        budget: of a plan of one step that has none, as `foveate.compress` takes it.
        max_new_tokens: maximum number of tokens of the answer.
        stream: callback for each piece of the answer's text.
        keep_pooling: also compute pooling maps of the content-adaptive stages, for a figure; the image is encoded once
            more for it, outside of the measured times.
        draft: draft model for speculative decoding, a folder or anything that `foveate.speculate` takes;
            the answer is the same.

    Raises:
        FoveateError: the image cannot be read, the question is empty or too long, the model cannot be loaded or asked,
            or the plan or draft cannot be read or does not fit the model.
    """
    if plan is None and budget is not None:
        raise FoveateError(f"a budget of {budget} needs a plan, such as plan='divprune'.")
    wanted = None if plan is None else Plan.of(plan, budget)
    if not isinstance(question, str) or not question.strip():
        raise FoveateError("the question is empty; ask something about the image.")
    check_text(question, "the question")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise FoveateError(f"max_new_tokens must be a positive integer, got {max_new_tokens!r}.")

    # The image is opened before the model is loaded, so that errors in it are reported at once.
    start = time.perf_counter()
    picture = open_image(image)
    opening = time.perf_counter() - start
    net, processor, name = _model(model, saved=wanted is None)

    start = time.perf_counter()
    inputs = inputs_of(net, processor, picture, question)
    length = inputs["input_ids"].shape[1]
    check_length(net, length, max_new_tokens)
    preprocess = opening + time.perf_counter() - start
    trace = Trace(net)

    following = nullcontext(handle_of(net)) if wanted is None else compress(net, wanted, processor=processor)
    drafting = nullcontext() if draft is None else speculate(net, draft)
    with following as handle, drafting as speculation, torch.inference_mode(), trace.watching():
        started = trace.now()
        output = net.generate(
            **inputs,
            generation_config=greedy(net, max_new_tokens),
            streamer=None if stream is None else _Stream(tokenizer_of(processor), stream),
        )
        finished = trace.now()
        reports = () if handle is None else handle.report().images
    encoded_box = seen_of(processor, picture.size)
    written = output[0] if net.config.is_encoder_decoder else output[0, length:]

    times = {"preprocess": preprocess, **trace.times(finished), "total": preprocess + finished - started}
    stages, processed_size = stages_of(net, trace, inputs)
    unmerged = max(stage.tokens for stage in stages)
    if "grid_hws" in inputs:  # also where a plan made the image smaller
        unmerged = max(unmerged, int(inputs["grid_hws"].prod(-1).sum()))
    read = stages[-1].tokens
    if handle is not None and reports:
        read = sum(report.tokens_kept for report in reports)
        stages = with_plan(stages, handle.plan, reports)
    return Answer(
        text=tokenizer_of(processor).decode(written, skip_special_tokens=True).strip(),
        question=question,
        model=name,
        image_size=picture.size,
        processed_size=processed_size,
        stages=stages,
        tokens=Tokens(
            read=read,
            unmerged=unmerged,
            text=length - placeholders(net, inputs["input_ids"]),
            generated=len(written),
        ),
        times=times,
        device=str(net.device),
        plan=None if handle is None else str(handle.plan),
        selection=placed(
            [selected(report, encoded_box) for report in reports],
            None if handle is None else handle.family.whole_tile,
            picture.size,
        ),
        pooling=pooling_of(net, inputs) if keep_pooling and processed_size is not None else [],
        draft=None if speculation is None else speculation.report().as_json(),
    )


def _model(model: Any, saved: bool) -> tuple[Any, Any, str]:
    """Return model, processor and model name; `saved`: attach the plan saved next to the weights."""
    if isinstance(model, tuple):
        if len(model) != 2 or not isinstance(model[0], nn.Module) or not callable(model[1]):
            raise FoveateError("as a tuple, model must be (model, processor), as foveate.load returns them.")
        net, processor = model
        return net, processor, getattr(net, "name_or_path", "") or type(net).__name__
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise FoveateError(
            f"model must be a folder, a Hub id or (model, processor), not {type(model).__name__}; a model alone does "
            "not know how to read text and images."
        )
    name = None if model is None else os.fspath(model)
    return *_kept(name, saved), name or "embedded"


@functools.lru_cache(maxsize=1)
def _kept(name: str | None, saved: bool) -> tuple[Any, Any]:
    return load(name, plan="saved" if saved else None)


class _Stream(TextStreamer):
    """Streamer that passes finished text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.receive = receive

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on a piece of text unless it is empty."""
        if text:
            self.receive(text)
