"""Ask one question about images or a clip."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import TextStreamer

from foveate.answering.acquisition import (
    AGAIN,
    Turn,
    call_in,
    first_messages,
    image_tokens_of,
    only_image,
    region,
    second_messages,
)
from foveate.answering.answer import Answer, Tokens
from foveate.answering.conversations import (
    check_length,
    check_new_tokens,
    greedy,
    inputs_of_batch,
    messages_of,
    placeholders,
    tokenizer_of,
)
from foveate.answering.limits import beyond_training
from foveate.answering.pooling import pooling_of
from foveate.answering.selections import placed, placed_view, seen_of, selected, views_of
from foveate.answering.stages import stages_of, with_plan
from foveate.answering.trace import Trace
from foveate.clips import Clip, VideoFile, clip_of_frames, is_clip, open_clip
from foveate.clips.given import frame_list
from foveate.core.acquisition import AcquisitionMethod, ToolCall, answer_in, calls_again, split_acquisition
from foveate.core.errors import FoveateError, Refusal, check_text
from foveate.core.files import stamp
from foveate.core.plan import Plan
from foveate.fetching import MAX_VIDEO_BYTES, VIDEO_SECONDS, fetch, is_address
from foveate.images import data_of, open_image
from foveate.loading import load
from foveate.runtime import compress, handle_of, speculate
from foveate.runtime.report import ImageReport


def ask(
    image: Any = None,
    question: str = "",
    model: str | os.PathLike[str] | tuple[Any, Any] | None = None,
    plan: Any = None,
    budget: Any = None,
    *,
    frames: Sequence[Any] | None = None,
    timestamps: Sequence[float] | None = None,
    max_new_tokens: int = 128,
    stream: Callable[[str], object] | None = None,
    keep_pooling: bool = False,
    draft: Any = None,
    system: str | None = None,
    **loading: Any,
) -> Answer:
    """Answer one question about images or a clip with greedy decoding, so that the same question gets the same answer.

        foveate.ask("receipt.png", "What is the total?")
        foveate.ask(["a.png", "https://example.org/b.png"], "Which is larger?")
        foveate.ask("clip.mp4", "What happens?", "Qwen/Qwen2.5-VL-7B-Instruct", "scene:16 + divprune:25%")
        foveate.ask(frames=images, timestamps=seconds, question="What happens?", model=(model, processor))

    Args:
        image: a path, an http or https address, a data URI, bytes, a PIL image or an array (see
            `foveate.images.open_image`); or a list of them, in the order in which the model reads them; or a clip: the
            path or address of a video file, or a `foveate.clips.Clip`. Of a file up to 32 frames are read, or those
            that the plan chooses. An image at an address may have 20 MiB and take 30 seconds, a video 200 MiB and 300
            seconds. Any host is asked, also of the local network: pass on no addresses of strangers.
        question: the question, in plain words. Text that the model's tokenizer would take for a control token, such
            as ``<image>``, is asked as text.
        model: a folder or Hub id, or ``(model, processor)`` as `load` returns them; the embedded model by default. The
            last model loaded by name is kept for the next question.
        plan: token compression for this question: anything that `foveate.compress` takes,
            such as ``"divprune:25%"``. A first step such as ``scene:16`` chooses the frames of a clip; one such as
            ``visionthink`` lets a model that was trained for it ask for more of an image. By default the plan that is
            attached to the model or saved with it, if any.
        budget: of a plan of one step that has none, as `foveate.compress` takes it.
        frames: in place of `image`: the frames of a clip, images of one size in any form that `open_image` reads.
        timestamps: ``(T,)`` ascending seconds of `frames`; None: two frames per second. The model reads them, as those
            of a file, from the first frame on.
        max_new_tokens: maximum number of tokens of the answer.
        stream: callback for each piece of the answer's text.
        keep_pooling: also compute pooling maps of the content-adaptive stages, for a figure of one image; the image is
            encoded once more for it, outside of the measured times.
        draft: draft model for speculative decoding, a folder or anything that `foveate.speculate` takes;
            the answer is the same.
        system: system prompt, for models whose chat template has a place for it.
        loading: options of `foveate.load`, such as ``dtype`` or ``revision``, for a model that is named.

    Raises:
        FoveateError: an image cannot be read, the question is empty or too long, the model cannot be loaded or asked,
            it takes no clips or no system prompt, or the plan or draft cannot be read or does not fit the model.
    """
    if plan is None and budget is not None:
        raise FoveateError(f"a budget of {budget} needs a plan, such as plan='divprune'.")
    wanted = None if plan is None else Plan.of(plan, budget)
    if not isinstance(question, str) or not question.strip():
        raise FoveateError("the question is empty; ask something about the image.")
    check_text(question, "the question")
    if system is not None:
        if not isinstance(system, str) or not system.strip():
            raise FoveateError("the system prompt is empty; leave it out, or write how to answer.")
        check_text(system, "the system prompt")
    check_new_tokens(max_new_tokens)

    # Images are opened before the model is loaded, so that errors in them are reported at once. Fetching is no part of
    # the account: it is not the model's time.
    sampler, followed = (None, None) if wanted is None else (wanted.frame_step, wanted.for_model)
    sources = sources_of(image, frames, timestamps)
    start = time.perf_counter()
    if frames is None:
        visuals = opened(sources, sampler, question)
    else:
        arrays = [np.asarray(open_image(frame)) for frame in sources]
        visuals = [clip_of_frames(arrays, timestamps, sampler=sampler, question=question)]
    opening = time.perf_counter() - start
    clip = next((one for one in visuals if isinstance(one, Clip)), None)
    if clip is not None and len(visuals) > 1:
        raise FoveateError("a clip is asked about alone: leave out the other images, or ask about frames of the clip.")
    if keep_pooling and len(visuals) > 1:
        raise FoveateError("a figure shows one image or one clip: leave it out for several images.")
    net, processor, name = model_of(model, wanted is None, loading)
    acquisition, followed = split_acquisition(followed, getattr(net, "name_or_path", ""))
    run = _Run(net, processor, name, question, visuals, wanted, followed, draft, max_new_tokens)
    if acquisition is None:
        return run.answer(messages_of(visuals, question, system), opening, stream, keep_pooling)
    if keep_pooling:
        raise FoveateError(f"a figure shows one image in one turn: leave it out for {acquisition.name}.")
    return _acquire(run, acquisition, only_image(visuals), system, opening, stream)


@dataclass(frozen=True)
class _Run:
    """What the turns of a question have in common; `followed` are the steps of the plan that a model follows."""

    net: Any
    processor: Any
    name: str
    question: str
    visuals: list[Any]
    plan: Plan | None
    followed: Plan | None
    draft: Any
    max_new_tokens: int

    def answer(
        self,
        messages: list[dict[str, Any]],
        opening: float = 0.0,
        stream: Callable[[str], object] | None = None,
        keep_pooling: bool = False,
    ) -> Answer:
        """Answer the last of some messages.

        Args:
            messages: Of the conversation.
            opening: Seconds that opening its images took.
            stream: See `ask`.
            keep_pooling: See `ask`.
        """
        net, processor, visuals, wanted = self.net, self.processor, self.visuals, self.plan
        clip = next((one for one in visuals if isinstance(one, Clip)), None)

        start = time.perf_counter()
        inputs = inputs_of_batch(net, processor, [messages])
        length = inputs["input_ids"].shape[1]
        check_length(net, length, self.max_new_tokens)
        preprocess = opening + time.perf_counter() - start
        trace = Trace(net)

        following = _following(net, processor, wanted is None, self.followed)
        drafting = nullcontext() if self.draft is None else speculate(net, self.draft)
        with following as handle, drafting as speculation, torch.inference_mode(), trace.watching():
            started = trace.now()
            output = net.generate(
                **inputs,
                generation_config=greedy(net, self.max_new_tokens),
                streamer=None if stream is None else _Stream(tokenizer_of(processor), stream),
            )
            finished = trace.now()
            reports = () if handle is None else handle.report().images
        written = output[0] if net.config.is_encoder_decoder else output[0, length:]

        times = {"preprocess": preprocess, **trace.times(finished), "total": preprocess + finished - started}
        stages, processed_size = stages_of(net, trace, inputs)
        unmerged = max(stage.tokens for stage in stages)
        if "grid_hws" in inputs:  # also where a plan made the image smaller
            unmerged = max(unmerged, int(inputs["grid_hws"].prod(-1).sum()))
        read = full = stages[-1].tokens
        layers = getattr(net.config.get_text_config(decoder=True), "num_hidden_layers", 0)
        by_layer = [read] * layers
        sizes = [visual.size for visual in visuals]
        if handle is not None and reports:
            read, full = (sum(getattr(report, name) for report in reports) for name in ("tokens_kept", "tokens_in"))
            by_layer = [
                sum(counts) for counts in zip(*(report.tokens_by_layer(layers) for report in reports), strict=True)
            ]
            stages = with_plan(stages, handle.plan, reports)
        return Answer(
            text=tokenizer_of(processor).decode(written, skip_special_tokens=True).strip(),
            question=self.question,
            model=self.name,
            image_sizes=sizes,
            frames=None if clip is None else len(clip.frames),
            timestamps=None if clip is None else list(clip.timestamps),
            processed_size=processed_size,
            stages=stages,
            tokens=Tokens(
                read=read,
                full=full,
                unmerged=unmerged,
                text=length - placeholders(net, inputs["input_ids"]),
                generated=len(written),
                by_layer=by_layer,
            ),
            times=times,
            device=str(net.device),
            plan=str(wanted) if wanted is not None else None if handle is None else str(handle.plan),
            selection=[] if handle is None else _selections(reports, handle.family.whole_tile, processor, sizes, clip),
            pooling=pooling_of(net, inputs) if keep_pooling and processed_size is not None else [],
            draft=None if speculation is None else speculation.report().as_json(),
            warnings=list(
                dict.fromkeys(
                    text for one in visuals if not isinstance(one, Clip) for text in beyond_training(processor, one)
                )
            ),
        )


def _acquire(
    run: _Run,
    method: AcquisitionMethod,
    image: Image.Image,
    system: str | None,
    opening: float,
    stream: Callable[[str], object] | None,
) -> Answer:
    """Answer a question in one or two turns.

    Tokens are those of the last turn, whose context holds all images; times are those of both turns.
    """
    prompts = method.read_prompts()
    messages = first_messages(method, prompts, image, run.question, system)
    shown = messages[-1]["content"][0]["image"]
    answer = replace(run, visuals=[shown]).answer(messages, opening)
    call, problem = call_in(method, answer.text, image)
    answers, turns = [answer], [_turn(answer, call, problem)]
    if call is not None:
        second = region(image.convert("RGB"), call)
        messages = second_messages(prompts, messages, answer.text, second)
        answer = replace(run, visuals=[shown, second]).answer(messages)
        answers.append(answer)
        turns.append(_turn(answer, None, AGAIN if calls_again(answer.text) else None))
    text = answer_in(answer.text)
    if stream is not None:
        stream(text)
    parts = dict.fromkeys(name for one in answers for name in one.times)
    full = image_tokens_of(run.net, run.processor, image)
    return replace(
        answer,
        text=text,
        image_sizes=[image.size],
        tokens=replace(answer.tokens, full=full, generated=sum(one.tokens.generated for one in answers)),
        times={name: sum(one.times.get(name, 0.0) for one in answers) for name in parts},
        selection=[],
        warnings=list(dict.fromkeys([*answer.warnings, *(turn.problem for turn in turns if turn.problem)])),
        turns=turns,
    )


def _turn(answer: Answer, call: ToolCall | None, problem: str | None) -> Turn:
    tokens = answer.tokens
    return Turn(
        answer.text,
        answer.image_sizes,
        tokens.read + tokens.text,
        tokens.read,
        tokens.generated,
        None if call is None else call.as_json(),
        problem,
    )


def sources_of(image: Any, frames: Sequence[Any] | None = None, timestamps: Sequence[float] | None = None) -> list[Any]:
    """Return what is asked about: images or a clip, or the frames of a clip."""
    if frames is None:
        if timestamps is not None:
            raise FoveateError("timestamps are those of frames: give frames=[...] too.")
        return [local(source) for source in _listed(image)]
    if image is not None:
        raise FoveateError("give an image or a clip, or frames=[...], not both.")
    if isinstance(frames, (str, bytes, os.PathLike)):
        raise FoveateError("frames are a list of images; give the path of a video file as the image.")
    return frame_list(frames)


def opened(sources: Sequence[Any], sampler: Any, question: str) -> list[Any]:
    """Open images or a clip, whose frames a step of a plan chooses, if there is one."""
    visuals = [_opened(source, sampler, question) for source in sources]
    if sampler is not None and not any(isinstance(one, Clip) for one in visuals):
        raise FoveateError(f"{sampler} chooses frames of a clip, and these are images; leave it out of the plan.")
    return visuals


def _opened(source: Any, sampler: Any, question: str) -> Any:
    if isinstance(source, Clip):
        if sampler is not None:
            raise FoveateError(f"the frames of this clip are chosen already; leave {sampler} out of the plan.")
        return source
    return open_clip(source, sampler=sampler, question=question) if is_clip(source) else open_image(source)


def _following(net: Any, processor: Any, as_it_is: bool, plan: Plan | None) -> AbstractContextManager[Any]:
    """Follow the plan that is attached, or this one; a plan that only chooses frames leaves none for the model."""
    if as_it_is:
        return nullcontext(handle_of(net))
    if plan is not None:
        return compress(net, plan, processor=processor)
    check_unattached(net)
    return nullcontext()


def check_unattached(net: Any) -> None:
    """Refuse a model that a plan is attached to, which a question with a plan of its own would follow too.

    Raises:
        FoveateError: there is one.
    """
    attached = handle_of(net)
    if attached is not None:
        what = f"the plan '{attached.plan}' is attached to this model already"
        raise FoveateError(Refusal("attached-already", what, "restore it first, or ask without a plan"))


def local(source: Any) -> Any:
    """Return a source without addresses: the bytes of a file on the web or in a data URI, or the source itself.

    An address is that of a video file by the ending of its path, a data URI by its type.

    Raises:
        FoveateError: the address cannot be read, or the URI holds no data.
    """
    if is_address(source):
        if is_clip(re.split("[?#]", source)[0]):
            return VideoFile(fetch(source, kind="video", max_bytes=MAX_VIDEO_BYTES, seconds=VIDEO_SECONDS))
        return fetch(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        if source[5:11].lower() == "video/":
            return VideoFile(data_of(source, max_bytes=MAX_VIDEO_BYTES, kind="a video"))
        return data_of(source)
    return source


def _listed(image: Any) -> list[Any]:
    """Return the sources that a list names, or a list of the only one."""
    sources = list(image) if isinstance(image, (list, tuple)) else [] if image is None else [image]
    if not sources:
        raise FoveateError("there is no image to ask about; name at least one.")
    return sources


def _selections(
    reports: tuple[ImageReport, ...], whole_tile: str | None, processor: Any, sizes: list[tuple[int, int]], clip: Any
) -> list[dict[str, Any]]:
    """Return the token selection of every image. Positions of tiles are known where there is one image, or views."""
    views = None if clip is not None else views_of(processor, sizes)
    if views is not None:
        return [placed_view(selected(report), view) for report, view in zip(reports, views, strict=True)]
    if clip is not None or (len(sizes) > 1 and len(reports) != len(sizes)):
        return [selected(report) for report in reports]
    boxes = [seen_of(processor, size) for size in sizes]
    if len(sizes) > 1:
        return [selected(report, box) for report, box in zip(reports, boxes, strict=True)]
    return placed([selected(report, boxes[0]) for report in reports], whole_tile, sizes[0])


def model_of(model: Any, saved: bool, loading: dict[str, Any]) -> tuple[Any, Any, str]:
    """Return model, processor and model name; `saved`: attach the plan saved next to the weights."""
    if isinstance(model, tuple):
        if len(model) != 2 or not isinstance(model[0], nn.Module) or not callable(model[1]):
            raise FoveateError("as a tuple, model must be (model, processor), as foveate.load returns them.")
        if loading:
            raise FoveateError(f"the model is loaded already: give {', '.join(loading)} to foveate.load.")
        net, processor = model
        return net, processor, getattr(net, "name_or_path", "") or type(net).__name__
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise FoveateError(
            f"model must be a folder, a Hub id or (model, processor), not {type(model).__name__}; a model alone does "
            "not know how to read text and images."
        )
    name = None if model is None else os.fspath(model)
    return *_kept(name, saved, loading), name or "embedded"


#: The last model that was loaded by name: how it was loaded, and what `load` returned.
_last: dict[str, Any] = {}


def _kept(name: str | None, saved: bool, loading: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model, or return the last one if it was loaded in the same way and its folder has not changed.

    Options need not be hashable.
    """
    how = (name, () if name is None else stamp(name), saved, loading)
    kept = _last.get("model")
    if kept is None or kept[0] != how:
        kept = None
        _last.clear()  # before the next one is loaded, so that memory holds one
        kept = _last["model"] = how, load(name, plan="saved" if saved else None, **loading)
    return kept[1]


class _Stream(TextStreamer):
    """Streamer that passes finished text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.receive = receive

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on a piece of text unless it is empty."""
        if text:
            self.receive(text)
