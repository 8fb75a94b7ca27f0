"""`stream`: a session that reads frames as they arrive and answers questions at any moment."""

from __future__ import annotations

import copy
import math
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate import compat
from foveate.answering.conversations import (
    check_clips,
    check_new_tokens,
    greedy,
    plain_messages,
    prompt_of,
    tokenizer_of,
)
from foveate.clips.clip import check_fps
from foveate.core.errors import FoveateError, check_text
from foveate.core.plan import Plan
from foveate.families import family_of
from foveate.images import open_image
from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.runtime import handle_of
from foveate.runtime.patches import NotCopyable, Patches
from foveate.streaming.cache import CachedSegment, StreamCache
from foveate.streaming.encoder import EncoderState, StepEncoder
from foveate.streaming.formats import Cursor, format_of
from foveate.streaming.language_model import LanguageModel
from foveate.streaming.policies import CachedStep, CachePolicy, KeepAll, decisions


def stream(
    model: Any,
    processor: Any,
    *,
    plan: Any = None,
    policy: CachePolicy | None = None,
    reuse: STCCacher | None = None,
    system: str | None = None,
    fps: float = 1.0,
    max_positions: int | None = None,
) -> Stream:
    """Open a session that reads frames as they arrive and answers questions at any moment.

        with foveate.stream(model, processor, policy=SlidingWindow(64)) as session:
            for time, frame in camera:
                session.feed(frame, time=time)
            session.ask("What happens?")

    Every step (one frame, or the frames of one temporal patch) passes the vision encoder and the language model once.
    Its keys and values are cached; then the policy decides what is evicted. A question is answered from a fork of the
    cache, which itself stays as it was.

    With `KeepAll` and evenly spaced frames an answer equals that of `generate` about the whole clip, up to rounding.
    Otherwise a stream differs from the model's own processing of a clip:

    - *Sizes*: the processor resizes every step by itself. Qwen3-VL's own processor makes frames of long clips smaller,
      so that a clip stays below its limit of pixels; a stream has no known end, and its frames keep their size.
    - *Frames*: none are left out; the caller decides how many per second are fed.
    - *Times*: Qwen2.5-VL multiplies the number of a step by a constant interval; here it is the time of its first
      frame since the first one of the stream, rounded down to positions in the same way. Qwen2-VL counts steps and
      LLaVA-OneVision frames, whatever their times. Qwen3-VL reads times as text, which evicted steps do not change.
    - *Attention*: a step attends to the steps that are cached when it arrives, and keeps what it has read of steps that
      are evicted later.
    - *Positions*: cached steps keep their positions, with gaps where steps were evicted. Where the next step or answer
      would pass `max_positions`, the gaps are closed: keys are rotated to the positions of a clip of the cached steps.

    Args:
        model: A model of `transformers`: Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision.
        processor: Its processor, with a chat template.
        plan: A plan of methods before the language model, which selects tokens of every step by itself, such as
            "divprune:25%". Budgets are per step.
        policy: What stays in the cache; default `KeepAll`.
        reuse: `STCCacher()` computes only changed tokens of a frame in the encoder; default: all.
        system: A system prompt.
        fps: Frames per second, for frames that are fed without a time.
        max_positions: Positions that may be used; default those of the language model (`max_position_embeddings`).

    Returns:
        The session: a context manager with `feed`, `ask` and `logits`.

    Raises:
        FoveateError: the model's family cannot stream (the message says why); a plan is attached to the model; the plan
            or the policy needs the question or the whole clip; an argument is no positive number.
    """
    return Stream(model, processor, plan, KeepAll() if policy is None else policy, reuse, system, fps, max_positions)


class Stream(NotCopyable):
    """A streaming session, made by `stream`; a context manager that releases the cache on exit."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        plan: Any,
        policy: CachePolicy,
        reuse: STCCacher | None,
        system: str | None,
        fps: float,
        max_positions: int | None,
    ) -> None:
        self.model, self.processor, self.policy = model, processor, policy
        self.plan = Plan(()) if plan is None else Plan.of(plan)
        if not isinstance(policy, CachePolicy):
            raise FoveateError(f"policy is an object such as SlidingWindow(64), not {policy!r}.")
        check_fps(fps)
        if system is not None:
            if not isinstance(system, str) or not system.strip():
                raise FoveateError("the system prompt is empty; leave it out, or write how to answer.")
            check_text(system, "the system prompt")
        if max_positions is not None and (
            isinstance(max_positions, bool) or not isinstance(max_positions, Integral) or max_positions < 1
        ):
            raise FoveateError(f"max_positions is a number of positions above 0, not {max_positions!r}.")
        family = family_of(model)
        core: Any = family.core(model)
        self._format = format_of(family, core, processor)
        check_clips(model, processor)
        handle = handle_of(model)
        if handle is not None:
            raise FoveateError(f"the plan '{handle.plan}' is attached to this model; restore it, and pass plan= here.")
        text: Any = family.text(core)
        self._language_model = LanguageModel(core, text, len(self._format.time_axes))
        self._fps, self._system = fps, system
        longest = getattr(text.config, "max_position_embeddings", None)
        self._limit = longest if max_positions is None else max_positions
        self._encoder = StepEncoder(family, core, self.plan, policy, reuse)
        self._state = EncoderState()
        self._pending: list[np.ndarray] = []
        self._pending_times: list[float] = []
        self._size: tuple[int, int] | None = None
        self._last: float | None = None
        self._steps, self._frames, self._closed = 0, 0, False
        self._cache = StreamCache(text)
        self._cursor = Cursor(0, 0)
        self._patches = Patches()
        try:
            self._encoder.attach(self._patches)
            self._read_prefix()
        except BaseException:
            self.close()
            raise

    # Public methods

    @torch.inference_mode()
    def feed(self, frame: Any, *, time: float | None = None) -> None:
        """Read one frame.

        Args:
            frame: A PIL image, an array (H, W, 3) uint8, a path or bytes. All frames of a stream have one size.
            time: When it was taken, in seconds; default 1 / fps after the one before it, the first at 0.

        Raises:
            FoveateError: the session is closed; the frame cannot be read or has another size; its time is not a finite
                number after that of the frame before; the stream has used all positions and evicted none; a plan was
                attached to the model meanwhile; or the policy gives no decision, where the frame is read and all stays.
        """
        self._check_open()
        pixels = np.asarray(open_image(frame).convert("RGB"))
        if self._size is not None and pixels.shape[:2] != self._size:
            (height, width), (rows, columns) = self._size, pixels.shape[:2]
            raise FoveateError(
                f"this frame has {columns} x {rows} pixels and the frames before {width} x {height}: frames of a "
                "stream have one size; resize it, or open another stream."
            )
        if time is None:
            time = 0.0 if self._last is None else self._last + 1 / self._fps
        try:
            time = float(time)
        except (TypeError, ValueError):
            raise FoveateError(f"the time of a frame is a number of seconds from 0 on, not {time!r}.") from None
        if not math.isfinite(time) or time < 0:
            raise FoveateError(f"the time of a frame is a number of seconds from 0 on, not {time}.")
        if self._last is not None and time <= self._last:
            raise FoveateError(
                f"this frame is of {time:g} s and the one before of {self._last:g} s: frames come in the order of time."
            )
        if len(self._pending) + 1 == self._format.frames:
            state = self._state.fork()  # a step that is refused is not remembered
            times = [*self._pending_times, time]
            self._read_step(self._cache, self._cursor, state, [*self._pending, pixels], times)
            self._state = state
            self._pending, self._pending_times = [], []
            self._steps += 1
        else:
            self._pending.append(pixels)
            self._pending_times.append(time)
        self._size, self._last, self._frames = pixels.shape[:2], time, self._frames + 1
        if not self._pending:  # the frame was read, also where the policy ends in an error
            self._cache.evict(decisions(self.policy, self.cached_steps))

    @torch.inference_mode()
    def ask(self, question: str, *, max_new_tokens: int = 128) -> str:
        """Answer a question about what is cached, with greedy decoding.

        Args:
            question: The question.
            max_new_tokens: Maximum number of tokens of the answer.

        Returns:
            The answer, stripped of white space. The cache of the stream stays as it was.

        Raises:
            FoveateError: the session is closed, no frame was fed, the question is empty, the number of tokens is none,
                the answer would not fit the positions of the model, or a plan was attached to it meanwhile.
        """
        check_new_tokens(max_new_tokens)
        cache, cursor, ids = self._question(question, max_new_tokens)
        known = cache.ids.to(self.model.device)
        prompt = torch.cat([known, ids])[None]
        settings = greedy(self.model, max_new_tokens)
        settings.cache_implementation = None
        with self._language_model.text_at(cache, cursor.text):
            written = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                **compat.cache_argument(cache.layers_cache),
                generation_config=settings,
            )
        answer = written[0, prompt.shape[1] :]
        return tokenizer_of(self.processor).decode(answer, skip_special_tokens=True).strip()

    @torch.inference_mode()
    def logits(self, question: str) -> Tensor:
        """Logits (vocabulary,) of the first token of the answer to a question; errors as of `ask`."""
        cache, cursor, ids = self._question(question, 1)
        mask = torch.ones(1, cache.length + len(ids), dtype=torch.int64, device=ids.device)
        with self._language_model.text_at(cache, cursor.text):
            output = self.model(
                input_ids=ids[None],
                attention_mask=mask,
                use_cache=True,
                logits_to_keep=1,
                **compat.cache_argument(cache.layers_cache),
            )
        return output.logits[0, -1]

    def close(self) -> None:
        """Release the cache and the hooks; a second call changes nothing."""
        self._closed = True
        self._patches.undo()
        self._cache.layers_cache.layers = []
        self._cache.segments, self._pending, self._state = [], [], EncoderState()

    @property
    def num_frames(self) -> int:
        """Frames fed so far."""
        return self._frames

    @property
    def cached_steps(self) -> list[CachedStep]:
        """Steps in the cache, oldest first."""
        return [
            CachedStep(segment.number, segment.time, segment.num_visual, segment.num_read, segment.tokens)
            for segment in self._cache.segments
        ]

    @property
    def cached_tokens(self) -> int:
        """Entries of the cache, text included, in every layer."""
        return self._cache.length

    @property
    def kv_bytes(self) -> int | None:
        """Bytes of cached keys and values; None where nothing is cached."""
        return self._cache.nbytes

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<stream of {self._frames} frames on {type(self.model).__name__}>"

    # The prompt

    def _check_open(self) -> None:
        if self._closed:
            raise FoveateError("this stream is closed; open another one.")
        handle = handle_of(self.model)
        if handle is not None:
            raise FoveateError(
                f"the plan '{handle.plan}' was attached to this model while its stream is open; restore it first."
            )
        if self._cache.length != int(self._cache.layers_cache.get_seq_length()):
            raise FoveateError("a pass of this stream was interrupted, and its cache is not known; open another one.")

    def _prompt(self, question: str) -> tuple[Tensor, Tensor]:
        """Ids of the prompt before and after the clip."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "video"}, _text_part(question)]}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": [_text_part(self._system)]})
        prompt = prompt_of(self.processor, plain_messages(messages, self.processor))
        tokenizer = tokenizer_of(self.processor)
        bos = getattr(tokenizer, "bos_token", None)
        ids = tokenizer(prompt, add_special_tokens=not (bos and prompt.startswith(bos)), return_tensors="pt")
        ids = ids["input_ids"][0]
        places = (ids == self.model.config.video_token_id).nonzero().flatten().tolist()
        if len(places) != 1:
            raise FoveateError(f"the chat template of this model writes {len(places)} clips for one.")
        return ids[: places[0]], ids[places[0] + 1 :]

    def _read_prefix(self) -> None:
        ids, _ = self._prompt("?")
        self._cache.prefix_ids = ids
        self._cursor = Cursor(len(ids), len(ids))
        positions = torch.arange(len(ids)).expand(len(self._format.time_axes), -1)
        if len(ids):
            self._language_model.read(self._cache, self._language_model.embed(ids), positions, 0)

    def _question(self, question: str, max_new_tokens: int) -> tuple[StreamCache, Cursor, Tensor]:
        """A fork of the cache with the end of the clip, its cursor, and the ids that follow."""
        self._check_open()
        if not isinstance(question, str) or not question.strip():
            raise FoveateError("the question is empty; ask something about the stream.")
        check_text(question, "the question")
        if not self._frames:
            raise FoveateError("no frame was fed yet; feed one before asking.")
        before, after = self._prompt(question)
        if not torch.equal(before, self._cache.prefix_ids):
            raise FoveateError("the chat template of this model writes the question before the clip.")
        cache, cursor = self._cache.fork(), copy.copy(self._cursor)
        if self._pending:
            # As in a whole clip, the last frame stands for those that its temporal patch lacks.
            missing = self._format.frames - len(self._pending)
            frames = [*self._pending, *[self._pending[-1]] * missing]
            times = [*self._pending_times, *[self._pending_times[-1]] * missing]
            self._read_step(cache, cursor, self._state.fork(), frames, times)
        dropped = cursor.selected and self._encoder.drops_separator
        separator = None if dropped else self._format.separator()
        needed = len(after) + max_new_tokens + (0 if separator is None else len(separator))
        self._make_positions(cache, cursor, needed)
        if separator is not None:
            positions = torch.arange(cursor.text, cursor.text + len(separator))
            positions = positions.expand(len(self._format.time_axes), -1)
            self._language_model.read(cache, separator, positions, cache.length)
            cursor.text += len(separator)
            ids = torch.full((len(separator),), self.model.config.video_token_id)
            cache.segments.append(
                CachedSegment(-1, math.inf, ids, torch.zeros(len(separator), dtype=torch.bool), cursor.text, 0, 0, None)
            )
        return cache, cursor, after.to(self.model.device)

    def _make_positions(self, cache: StreamCache, cursor: Cursor, count: int) -> None:
        """Close gaps of a fork where `count` tokens of text would pass the limit of positions."""
        if self._limit is None or cursor.text + count <= self._limit:
            return
        if cache.has_gaps:
            self._format.cut_out(cursor, cache.close_gaps(self._format.time_axes, cursor.text))
        if cursor.text + count > self._limit:
            raise FoveateError(
                f"the stream takes {cursor.text} positions; with {count} more for the question and its answer that is "
                f"more than {self._limit}: ask a shorter question, or choose a policy that evicts steps."
            )

    # Steps

    def _read_step(
        self,
        cache: StreamCache,
        cursor: Cursor,
        state: EncoderState,
        frames: list[np.ndarray],
        times: list[float],
    ) -> None:
        """Encode a step, let the language model read it, and add it to a cache."""
        pixels = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in self._format.pixels(frames).items()
        }
        number = cursor.steps
        step = self._encoder.encode(pixels, number, state)
        before, after = self._format.text_around(times)
        moved = copy.copy(cursor)
        placed = self._format.place(moved, step.grid, times, len(before), len(after))
        if self._limit is not None and int(placed.positions.max()) >= self._limit and cache.has_gaps:
            self._format.cut_out(cursor, cache.close_gaps(self._format.time_axes, placed.start))
            moved = copy.copy(cursor)
            placed = self._format.place(moved, step.grid, times, len(before), len(after))
        if self._limit is not None and int(placed.positions.max()) >= self._limit:
            raise FoveateError(
                f"the stream has used all {self._limit} positions of this model; choose a policy that evicts steps, "
                "such as SlidingWindow(64), or feed fewer frames."
            )
        size, kept = step.grid.size, step.selection.indices.cpu()
        columns = torch.cat(
            [torch.arange(len(before)), len(before) + kept, len(before) + size + torch.arange(len(after))]
        )
        positions = placed.positions[:, columns]
        if len(positions) == 1 and self._encoder.keeps_positions is False:
            positions = torch.arange(placed.start, placed.start + len(columns))[None]
            moved.text = placed.start + len(columns)
        moved.selected |= len(kept) < size
        visual = torch.zeros(len(columns), dtype=torch.bool)
        visual[len(before) : len(before) + len(kept)] = True
        ids = torch.full((len(columns),), int(self.model.config.video_token_id))
        ids[~visual] = torch.tensor([*before, *after], dtype=torch.int64)
        embeds = self._language_model.embed(ids).clone()
        embeds[visual.to(embeds.device)] = step.tokens.features.to(embeds)
        self._language_model.read(cache, embeds, positions, cache.length, visual, step.planes)
        tokens = step.tokens if self.policy.reads_features else None
        time = sum(times) / len(times)
        cache.add(CachedSegment(number, time, ids, visual, placed.start, 0, len(kept), tokens))
        vars(cursor).update(vars(moved))


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
