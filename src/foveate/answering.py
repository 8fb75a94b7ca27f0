"""`ask`: one question about one image, with an account of where the tokens and the time went.

The account is taken from the run itself: hooks read the shapes and the clock while `generate` works, and are removed
when it ends. They see every model of `AutoModelForImageTextToText`; a ViT-UHD also shows its stages.

`answer_batch` answers many conversations at once and keeps no account.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TextStreamer

from foveate.encoders import ViTUHDConfig, ViTUHDModel
from foveate.errors import FoveateError, check_text
from foveate.loading import load
from foveate.plan import Plan
from foveate.runtime import compress, handle_of, speculate
from foveate.runtime.report import ImageReport
from foveate.views.images import open_image

#: The parts of an answer's time, in order.
PARTS = ("view", "encoder", "connector", "prefill", "decode")

#: Where `transformers` keeps what maps encoder features into the language model's space.
CONNECTORS = ("multi_modal_projector", "connector", "embed_vision", "aligner", "mm_projector", "qformer")


@dataclass(frozen=True)
class Stage:
    """The tokens of the image at one point of the model.

    Attributes:
        name: such as ``"patches"`` or ``"stage 1"``.
        grid: rows and columns of tokens, where the model keeps them as one grid.
        tokens: number of tokens.
        size: pixels of the resized image ``(width, height)`` that one token stands for, where that is known.
        detail: what made these tokens, in words.
    """

    name: str
    grid: tuple[int, int] | None
    tokens: int
    size: tuple[int, int] | None
    detail: str


@dataclass(frozen=True)
class Tokens:
    """Token counts of one answer.

    Attributes:
        read: image tokens that the language model reads.
        unmerged: image tokens before any merging: one a patch.
        text: text tokens of the prompt.
        generated: tokens of the answer.
    """

    read: int
    unmerged: int
    text: int
    generated: int


@dataclass(frozen=True)
class Pooling:
    """What a content-adaptive stage looked at in an image, as maps of the tokens that entered it.

    A stage turns the tokens x_s of a 2 x 2 window into y = sum_s a_s * x_s, with weights a_s of their own for every
    channel. Where the tokens of a window are alike, any weights give the same y, so the weights alone say little; what
    they change does. With m the mean of the window, y - m = sum_s (a_s - 1/4) * (x_s - m), and the effect of token s is
    the length of its term along y - m.

    Attributes:
        stage: name of the stage.
        weight: ``(rows, columns)``, weight of each token averaged over channels; 1/4 is average pooling.
        effect: ``(rows, columns)``, effect of each token as a fraction of the typical length of m. The four effects of
            a window sum to the distance of its output from average pooling.
        spread: how far the weight of one channel typically is from 1/4 (root mean square).
    """

    stage: str
    weight: np.ndarray
    effect: np.ndarray
    spread: float


@dataclass(frozen=True)
class Answer:
    """An answer, and where its tokens and its time went.

    Attributes:
        text: the answer.
        question: what was asked.
        model: the name of the model.
        image_size: ``(width, height)`` in pixels of the image as given, upright.
        view_size: ``(width, height)`` in pixels to which it was resized, where the model makes one view of it.
        stages: the image's tokens from patches to what the language model reads.
        tokens: token counts.
        times: seconds for ``view`` (opening, resizing, patches, tokenising), ``encoder``, ``connector``, ``prefill``
            (the language model reads the prompt), ``decode`` (it writes the answer), and ``total``, which is a little
            more than their sum. Parts that a model does not have are missing.
        device: where the model ran.
        plan: the plan that was followed, as text, or None.
        selection: what the plan did to each image, as plain values; see `selected`.
        pooling: for each content-adaptive stage what it looked at, if `ask` was told to keep it.
        draft: what a draft did, as plain values (`foveate.runtime.Speculation`), or None.
    """

    text: str
    question: str
    model: str
    image_size: tuple[int, int]
    view_size: tuple[int, int] | None
    stages: list[Stage]
    tokens: Tokens
    times: dict[str, float]
    device: str
    plan: str | None = None
    selection: list[dict[str, Any]] = field(default_factory=list, repr=False)
    pooling: list[Pooling] = field(default_factory=list, repr=False)
    draft: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain JSON values, without the pooling maps."""
        document = {name: value for name, value in vars(self).items() if name != "pooling"}
        document["stages"] = [asdict(stage) for stage in self.stages]
        document["tokens"] = asdict(self.tokens)
        return document


def ask(
    image: Any,
    question: str,
    model: str | os.PathLike[str] | tuple[Any, Any] | None = None,
    plan: Any = None,
    *,
    max_new_tokens: int = 128,
    stream: Callable[[str], object] | None = None,
    keep_pooling: bool = False,
    draft: Any = None,
) -> Answer:
    """Answer one question about one image; always the same answer to the same question (greedy decoding).

    Args:
        image: a path, bytes, a PIL image or an array (see `foveate.views.images.open_image`).
        question: the question, in plain words. Text that the model's tokenizer would take for a control token, such
            as ``<image>``, is asked as text.
        model: a folder or Hub id, or ``(model, processor)`` as `load` returns them; the embedded model by default. The
            last model loaded by name is kept for the next question.
        plan: how to shorten what the language model reads, for this question: anything that `foveate.compress` takes,
            such as ``"divprune:25%"``. By default the plan that is attached to the model or saved beside it, if any.
        max_new_tokens: length at which an answer is cut off.
        stream: called with each piece of the answer's text as soon as it is final.
        keep_pooling: also keep what the content-adaptive stages looked at, for a picture; the image is encoded once
            more for it, outside of the measured times.
        draft: what guesses the answer while the model writes it, a folder or anything that `foveate.speculate` takes;
            the answer is the same.

    Raises:
        FoveateError: the image cannot be read, the question is empty or too long, the model cannot be loaded or asked,
            or the plan or draft cannot be read or does not fit the model.
    """
    if plan is not None and draft is not None:
        raise FoveateError("a draft speeds up models without a plan; leave the draft or the plan out.")
    wanted = None if plan is None else Plan.of(plan)
    if not isinstance(question, str) or not question.strip():
        raise FoveateError("the question is empty: say in words what you want to know about the image.")
    check_text(question, "the question")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise FoveateError(f"max_new_tokens must be a whole number from 1 on, got {max_new_tokens!r}.")

    # The image before the model: what is wrong with it should not have to wait for a model to load.
    start = time.perf_counter()
    picture = open_image(image)
    opening = time.perf_counter() - start
    net, processor, name = _model(model, saved=wanted is None)

    start = time.perf_counter()
    inputs = inputs_of(net, processor, picture, question)
    length = inputs["input_ids"].shape[1]
    check_length(net, length, max_new_tokens)
    view = opening + time.perf_counter() - start
    trace = Trace(net)

    following = nullcontext(handle_of(net)) if wanted is None else compress(net, wanted)
    drafting = nullcontext() if draft is None else speculate(net, draft)
    with following as handle, drafting as speculation, torch.inference_mode(), trace.watching():
        started = trace.now()
        output = net.generate(
            **inputs,
            generation_config=greedy(net, max_new_tokens),
            streamer=None if stream is None else _Stream(_tokenizer(processor), stream),
        )
        finished = trace.now()
        reports = () if handle is None else handle.report().images
    written = output[0] if net.config.is_encoder_decoder else output[0, length:]

    times = {"view": view, **trace.times(finished), "total": view + finished - started}
    stages, view_size = _stages(net, trace, inputs)
    unmerged = max(stage.tokens for stage in stages)
    if "grid_hws" in inputs:  # also where a plan made the image smaller
        unmerged = max(unmerged, int(inputs["grid_hws"].prod(-1).sum()))
    read = stages[-1].tokens
    if handle is not None and reports:
        read = sum(report.tokens_kept for report in reports)
        stages = _stages_of_plan(stages, handle.plan, reports)
    return Answer(
        text=_tokenizer(processor).decode(written, skip_special_tokens=True).strip(),
        question=question,
        model=name,
        image_size=picture.size,
        view_size=view_size,
        stages=stages,
        tokens=Tokens(
            read=read,
            unmerged=unmerged,
            text=length - _placeholders(net, inputs),
            generated=len(written),
        ),
        times=times,
        device=str(net.device),
        plan=None if handle is None else str(handle.plan),
        selection=_placed(
            [selected(report, _seen(processor, picture.size)) for report in reports],
            None if handle is None else handle.family.whole_tile,
            picture.size,
        ),
        pooling=_pooling(net, inputs) if keep_pooling and view_size is not None else [],
        draft=None if speculation is None else speculation.report().as_json(),
    )


def selected(report: ImageReport, seen: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> dict[str, Any]:
    """What a plan did to one image, as plain JSON values.

    Args:
        report: of the handle of the plan.
        seen: (left, top, right, bottom) of what the encoder saw, as fractions of the image; above 1 for padding.

    Returns:
        The report's own values; ``seen``; for every crop its ``kind``, ``grid``, ``box`` (fractions of what was seen),
        ``index`` (place of each cell of the grid among the tokens, -1 in padding), ``tokens`` and how many of them the
        language model reads (``kept``: merged ones count where they stand); and, as places among the image's tokens,
        ``kept`` (those that stand for themselves), ``merged`` (one mapping for each group: ``at``, where it stands, and
        ``tokens``, its members), ``dropped`` and ``separators``. ``shares`` has every token's share in what it went
        into, or is None where the members of a group have equal ones. ``measured`` has what methods asked of each
        token: its ``kind``, the ``layer`` and ``values``. Every one of ``layers`` says which tokens it kept.
    """
    document: dict[str, Any] = report.as_json() | {"seen": list(seen)}
    layout, places = report.layout, report.selection.indices.tolist()
    for crop, described in zip(layout.crops, document["crops"], strict=True):
        described |= {"box": list(crop.box), "index": crop.index.tolist()}
    groups: list[list[int]] = [[] for _ in places]
    dropped = []
    for token, row in enumerate(report.selection.members(layout.count).tolist()):
        (dropped if row < 0 else groups[row]).append(token)
    rows = list(zip(places, groups, strict=True))
    separators = layout.separators
    layers = [layer.as_json() | {"kept": layer.indices.tolist()} for layer in report.layers]
    return document | {
        "layers": layers,
        "kept": [place for place, group in rows if group == [place]],
        "merged": [{"at": place, "tokens": group} for place, group in rows if group != [place]],
        "dropped": dropped,
        "separators": [] if separators is None else separators.nonzero().flatten().tolist(),
        "shares": None if report.selection.weights is None else report.selection.weights.tolist(),
        "measured": [
            {"kind": need.kind, "layer": need.layer, "values": values.tolist()}
            for need, values in report.measured.items()
        ],
    }


def _placed(documents: list[dict[str, Any]], whole: str | None, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Give tiles that are budgeted as images of their own their places in the image (width, height) of the question.

    Models are not told how many rows and columns of tiles there are. Processors divide an image so that its tiles are
    as nearly square as their number allows, which is how the division is found again.
    """
    if whole is None or len(documents) < 2:
        return documents
    tiles = documents[1:] if whole == "first" else documents[:-1]
    count, ratio = len(tiles), size[0] / size[1]
    columns = min(
        (n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(math.log(n * n / (count * ratio)))
    )
    rows = count // columns
    for document in documents:
        document["crops"][0]["kind"] = "thumbnail"
    for number, document in enumerate(tiles):
        row, column = divmod(number, columns)
        box = [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows]
        document["crops"][0] |= {"kind": "tile", "box": box}
    return documents


def _seen(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """What of an image (width, height) the processor shows the encoder, as fractions of it: cut off or padded."""
    images: Any = getattr(processor, "image_processor", None)
    padding = getattr(inspect.getmodule(type(images)), "navit_resize", None)  # Kimi's, on the right and at the bottom
    if padding is not None and images.do_resize:
        limits = (images.patch_size, images.merge_size, images.max_patches, images.size.max_height)
        (height, width), (padded_height, padded_width) = padding(size[1], size[0], *limits)
        return 0.0, 0.0, padded_width / width, padded_height / height
    shortest = getattr(getattr(images, "size", None), "shortest_edge", None)
    crop = getattr(images, "crop_size", None)
    if not (getattr(images, "do_center_crop", False) and shortest and crop) or getattr(images, "do_pad", False):
        return 0.0, 0.0, 1.0, 1.0
    scale = shortest / min(size)
    width, height = (
        min(1.0, side / (scale * own)) for side, own in zip((crop["width"], crop["height"]), size, strict=True)
    )
    return (1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2


#: What a step of a plan does to tokens, by its site.
DOINGS = {
    "before-lm": "chosen before the language model",
    "in-encoder": "merged inside the encoder",
    "view": "made from a smaller image",
}


def _stages_of_plan(stages: list[Stage], plan: Plan, reports: tuple[ImageReport, ...]) -> list[Stage]:
    """The stages of a model, and one more for every step of the plan that was followed."""
    if stages[-1].name == "language model":
        detail = "image tokens of the prompt"
        stages = [*stages[:-1], Stage("connector", None, stages[-1].tokens, None, detail)]
    before = zip(*(report.steps for report in reports), strict=True)
    inside = zip(*(report.layers for report in reports), strict=True)
    return [
        *stages,
        *(
            Stage(str(step), None, sum(one.tokens_kept for one in done), None, DOINGS[step.method.site])
            for step, done in zip(plan.early_steps, before, strict=False)
        ),
        *(
            Stage(f"layer {done[0].layer}", None, sum(one.tokens_kept for one in done), None, done[0].method)
            for done in inside
        ),
    ]


@functools.lru_cache(maxsize=1)
def _kept(name: str | None, saved: bool) -> tuple[Any, Any]:
    return load(name, plan="saved" if saved else None)


def _model(model: Any, saved: bool) -> tuple[Any, Any, str]:
    """Model, processor and a name for them; `saved`: with the plan that was saved beside it."""
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


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def inputs_of(net: Any, processor: Any, picture: Any, question: str) -> Any:
    """The model's inputs for one user turn: the image, then the question."""
    question = as_plain_text(question.strip(), _tokenizer(processor))
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        placeholder = getattr(processor, "image_token", "")
        inputs = processor(images=picture, text=f"{placeholder}{question}", return_tensors="pt")
    return inputs.to(net.device, dtype=net.dtype)


def as_plain_text(text: str, tokenizer: Any) -> str:
    """`text` in which no token with a special meaning (placeholders, ends of turns) can be read any more.

    A space behind the first character of such a token breaks it: ``<image>`` becomes ``< image>``. Without it, a
    question could stand for an image that is not there, or end the user's turn.
    """
    special = set(tokenizer.all_special_tokens)
    special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = {token for token in special if len(token) > 1}
    while found := [token for token in special if token in text]:
        for token in found:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def check_length(net: Any, length: int, max_new_tokens: int) -> None:
    """Raise FoveateError for a prompt of `length` tokens and an answer that are more than a model's positions."""
    longest = getattr(net.config.get_text_config(), "max_position_embeddings", None)
    if longest and length + max_new_tokens > longest:
        raise FoveateError(
            f"image and question take {length} tokens; with max_new_tokens={max_new_tokens} that is more than the "
            f"{longest} positions of this model: ask a shorter question, or give a smaller image."
        )


def greedy(net: Any, max_new_tokens: int) -> Any:
    """The model's own generation settings without sampling, so that an answer can be repeated."""
    settings = copy.deepcopy(net.generation_config)
    settings.do_sample = False
    settings.temperature = settings.top_p = settings.top_k = settings.min_p = settings.typical_p = None
    settings.num_beams, settings.num_return_sequences = 1, 1
    settings.max_length, settings.max_new_tokens = None, max_new_tokens
    return settings


@torch.inference_mode()
def answer_batch(
    model: Any, processor: Any, conversations: Sequence[Sequence[dict[str, Any]]], max_new_tokens: int | Sequence[int]
) -> list[str]:
    """Answer the last turn of many conversations at once, greedily.

    A plan that is attached to the model is followed. An answer is what the conversation alone would get, up to the
    rounding of larger products.

    Args:
        model: a model of `transformers` that answers questions about images.
        processor: its processor.
        conversations: for each its messages, such as ``{"role": "user", "content": [{"type": "image", "image": PIL
            image}, {"type": "text", "text": "What is it?"}]}``; a content that is text alone may be a string. Text that
            the model's tokenizer would take for a control token is passed on as text.
        max_new_tokens: length at which answers are cut off, for all, or one for each conversation.

    Returns:
        The answers, without white space around them.

    Raises:
        FoveateError: there is no conversation, or one is longer than the model can read.
    """
    inputs = inputs_of_batch(model, processor, conversations)
    single = isinstance(max_new_tokens, int)
    limits = [max_new_tokens] * len(conversations) if single else [*max_new_tokens]
    check_length(model, inputs["input_ids"].shape[1], max(limits))
    output = model.generate(**inputs, generation_config=greedy(model, max(limits)))
    written = output if model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
    return texts_of(model, processor, written, limits)


def inputs_of_batch(model: Any, processor: Any, conversations: Sequence[Sequence[dict[str, Any]]]) -> Any:
    """The model's inputs for the next answer in each of many conversations, padded on the left; see `answer_batch`."""
    if not conversations:
        raise FoveateError("there is no conversation to go on with.")
    plain = [plain_messages(messages, processor) for messages in conversations]
    images = [[part["image"] for part in _parts(messages) if part["type"] == "image"] for messages in plain]
    inputs = processor(
        **({"images": images} if any(images) else {}),
        text=[prompt_of(processor, messages) for messages in plain],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    return inputs.to(model.device, dtype=model.dtype)


def plain_messages(messages: Sequence[dict[str, Any]], processor: Any) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts, and whose texts hold no token with a special meaning."""
    tokenizer = _tokenizer(processor)
    found = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [
            {"type": "text", "text": as_plain_text(part["text"].strip(), tokenizer)} if part["type"] == "text" else part
            for part in parts
        ]
        found.append({**message, "content": parts})
    return found


def prompt_of(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """Messages as the text that the model goes on with. Without a chat template: images first, then all texts."""
    if getattr(processor, "chat_template", None):
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    parts = _parts(messages)
    placeholders = getattr(processor, "image_token", "") * sum(part["type"] == "image" for part in parts)
    return placeholders + "\n".join(part["text"] for part in parts if part["type"] == "text")


def texts_of(model: Any, processor: Any, written: torch.Tensor, limits: Sequence[int]) -> list[str]:
    """Generated tokens (B, T) as text: each row up to its end of text or its limit, without white space around it."""
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    first = 1 if model.config.is_encoder_decoder else 0  # decoders of those may begin with what ends a text
    rows = []
    for row, limit in zip(written[:, first:].tolist(), limits, strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[: min(end, limit)])
    texts = _tokenizer(processor).batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in texts]


def image_tokens(model: Any, ids: torch.Tensor) -> list[tuple[int, float]]:
    """What became of the images of the last call in this thread, for every sequence of its batch.

    Args:
        model: the model, with a plan or without.
        ids: ``(B, L)`` of the prompts.

    Returns:
        For each sequence the tokens of its images before the plan, and those that the language model worked on, the
        mean over its layers.
    """
    handle, config = handle_of(model), model.config
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    counts = [0] * len(ids) if token is None else (ids == token).sum(dim=1).tolist()
    if handle is None or (token is not None and not any(counts)):  # a report is of the last call that had images
        return [(count, count) for count in counts]
    layers = config.get_text_config().num_hidden_layers
    found: list[tuple[int, float]] = [(0, 0)] * len(ids)
    for image in handle.report().images:
        before, after = found[image.row]
        found[image.row] = (before + image.tokens_in, after + image.mean_tokens(layers))
    return found


def _parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"]]


class _Stream(TextStreamer):
    """Hands finished text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.receive = receive

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on a piece of text, if there is one."""
        if text:
            self.receive(text)


class Trace:
    """What the parts of a model do in one run: when they start and end, and how many tokens they put out.

    Attributes:
        tokens: tokens that a part gave in its first run: ``"encoder"``, ``"connector"``, and for a ViT-UHD
            ``"patches"`` and the index of each block with a stage.
    """

    def __init__(self, net: Any) -> None:
        self.device = net.device
        base = net.base_model
        self.encoder = _other_than(net, net.get_encoder(modality="image"))
        self.connector = next((found for name in CONNECTORS if (found := getattr(base, name, None)) is not None), None)
        self.language_model = _other_than(net, net.get_decoder())
        self.tokens: dict[str | int, int] = {}
        self._spans: dict[str, list[tuple[float, float]]] = {}

    def now(self) -> float:
        """Seconds on a clock that waits for the device to finish what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Read shapes and clock of the parts while the block runs; afterwards the model has no hooks of ours."""
        with ExitStack() as hooks:
            parts = ("encoder", self.encoder), ("connector", self.connector), ("language_model", self.language_model)
            for name, part in parts:
                if part is not None:
                    self._time(hooks, name, part)
            if isinstance(self.encoder, ViTUHDModel):
                self._count(hooks, "patches", self.encoder.patch_embed)
                for index in self.encoder.config.merger_layer_index or ():
                    self._count(hooks, index, self.encoder.get_submodule(f"encoder.blocks.{index}.merger"))
            yield

    def _time(self, hooks: ExitStack, name: str, part: nn.Module) -> None:
        begun: list[float] = []

        def before(*_: Any) -> None:
            begun.append(self.now())

        def after(_part: nn.Module, _inputs: Any, output: Any) -> None:
            self._spans.setdefault(name, []).append((begun.pop(), self.now()))
            self.tokens.setdefault(name, _tokens_of(output))

        hooks.callback(part.register_forward_pre_hook(before).remove)
        hooks.callback(part.register_forward_hook(after).remove)

    def _count(self, hooks: ExitStack, name: str | int, part: nn.Module) -> None:
        def after(_part: nn.Module, _inputs: Any, output: Any) -> None:
            self.tokens.setdefault(name, _tokens_of(output))

        hooks.callback(part.register_forward_hook(after).remove)

    def times(self, finished: float) -> dict[str, float]:
        """Seconds in each part; decoding is what follows the language model's first run, until `finished`."""
        times = {}
        for name in ("encoder", "connector"):
            if spans := self._spans.get(name):
                times[name] = sum(end - start for start, end in spans)
        if spans := self._spans.get("language_model"):
            first_start, first_end = spans[0]
            times |= {"prefill": first_end - first_start, "decode": finished - first_end}
        return times


def _other_than(net: Any, part: Any) -> nn.Module | None:
    """`part`, unless the look-up of transformers fell back to the model itself."""
    return part if isinstance(part, nn.Module) and part is not net and part is not net.base_model else None


def _tokens_of(output: Any) -> int:
    """Number of tokens in a module's output: all axes of its features but the last."""
    if not isinstance(output, torch.Tensor):
        output = getattr(output, "last_hidden_state", None) if hasattr(output, "last_hidden_state") else output[0]
    return output.numel() // output.shape[-1] if isinstance(output, torch.Tensor) and output.numel() else 0


def _placeholders(net: Any, inputs: Any) -> int:
    """Positions of the prompt that image tokens fill."""
    token = getattr(net.config, "image_token_id", None)
    if token is None:
        token = getattr(net.config, "image_token_index", None)
    return 0 if token is None else int((inputs["input_ids"] == token).sum())


def _stages(net: Any, trace: Trace, inputs: Any) -> tuple[list[Stage], tuple[int, int] | None]:
    """The image's tokens along the way, and the size of the view where there is one."""
    read = _placeholders(net, inputs)
    if isinstance(trace.encoder, ViTUHDModel):
        return _vit_uhd_stages(trace.encoder.config, trace.tokens, inputs["grid_hws"][0].tolist())
    encoded = trace.tokens.get("encoder", 0)
    grids = inputs.get("image_grid_thw")
    patches = int(grids.prod(-1).sum()) if grids is not None else encoded
    stages = []
    if patches:
        stages.append(Stage("patches", None, patches, None, "tokens of the vision encoder"))
    read = read if read > 1 else trace.tokens.get("connector", encoded)
    stages.append(Stage("language model", None, read, None, "image tokens that the language model reads"))
    return stages, None


def _vit_uhd_stages(
    config: ViTUHDConfig, tokens: dict[str | int, int], grid: list[int]
) -> tuple[list[Stage], tuple[int, int]]:
    rows, columns = grid
    side, blocks = config.patch_size, config.merger_layer_index or ()
    view_size = (columns * side, rows * side)
    if tokens["patches"] != rows * columns:  # the view was made smaller on its way
        smaller = [Stage("patches", None, tokens["patches"], None, "patch embedding of the smaller image")]
        for number, (index, method) in enumerate(zip(blocks, config.stage_methods, strict=True), 1):
            smaller.append(Stage(f"stage {number}", None, tokens[index], None, f"{method} after block {index + 1}"))
        return smaller, view_size
    stages = [Stage("patches", (rows, columns), tokens["patches"], (side, side), "patch embedding")]
    for number, (index, method) in enumerate(zip(blocks, config.stage_methods, strict=True), 1):
        rows, columns, side = rows // 2, columns // 2, side * 2
        detail = f"{method} after block {index + 1} of {config.num_hidden_layers}"
        stages.append(Stage(f"stage {number}", (rows, columns), tokens[index], (side, side), detail))
    return stages, view_size


def _pooling(net: Any, inputs: Any) -> list[Pooling]:
    """What each content-adaptive stage looks at in the image, from one more run of the encoder without the plan."""
    encoder = net.get_encoder(modality="image")
    if not isinstance(encoder, ViTUHDModel):
        return []
    found: list[Pooling] = []
    rows, columns = inputs["grid_hws"][0].tolist()
    with ExitStack() as hooks, torch.inference_mode():
        for number, index in enumerate(encoder.config.merger_layer_index):
            merger = encoder.get_submodule(f"encoder.blocks.{index}.merger")
            if not hasattr(merger, "weights"):
                continue
            grid = (rows >> number, columns >> number)

            def before(
                stage: Any, windows: tuple[torch.Tensor], name: str = f"stage {number + 1}", grid: Any = grid
            ) -> None:
                weights = stage.weights(windows[0]).float()
                found.append(
                    Pooling(
                        name,
                        weight=_as_map(weights.mean(-1), grid),
                        effect=_as_map(pooling_effect(windows[0].float(), weights), grid),
                        spread=float((weights - 0.25).square().mean().sqrt()),
                    )
                )

            hooks.callback(merger.register_forward_pre_hook(before).remove)
        encoder(pixel_values=inputs["pixel_values"], grid_hws=inputs["grid_hws"])
    return found


def pooling_effect(windows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Effect ``(M, 4)`` of each token of windows ``(M, 4, D)`` pooled with weights ``(M, 4, D)``; see `Pooling`."""
    mean = windows.mean(dim=1, keepdim=True)
    terms = (weights - 0.25) * (windows - mean)
    change = terms.sum(dim=1, keepdim=True)
    direction = change / change.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(change.dtype).tiny)
    return (terms * direction).sum(dim=-1) / mean.norm(dim=-1).square().mean().sqrt()


def _as_map(values: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Values of windows ``(M, 4)``, row-major windows and tokens, at their place in the grid ``(rows, columns)``."""
    rows, columns = grid
    placed = values.reshape(rows // 2, columns // 2, 2, 2).permute(0, 2, 1, 3)
    return placed.reshape(rows, columns).cpu().numpy()
