"""`foveate stream`: ask about a video file while it is read as a stream."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from foveate.commands.ask import printable
from foveate.commands.options import (
    AttnImplementation,
    DeviceMap,
    Dtype,
    HubDevice,
    Json,
    Revision,
    loading_options,
)
from foveate.console import console, print_json
from foveate.core.errors import FoveateError

EXAMPLES = """
    foveate stream clip.mp4 "What happens?" --model Qwen/Qwen3-VL-8B-Instruct --every 10 --policy window:64
    foveate stream clip.mp4 "Who is in the picture?" --model path/to/folder --plan stc:30% --reuse --json
"""


def stream(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Video file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Question, in quotes.")],
    model: Annotated[
        str, typer.Option(help="Folder or Hub id of a model that can stream: Qwen2-VL, 2.5-VL, 3-VL, LLaVA-OneVision.")
    ],
    policy: Annotated[
        str,
        typer.Option(
            help="What stays in the KV cache: all, window:STEPS, sinks:STEPS,STEPS (the first and the newest) or "
            "even:STEPS."
        ),
    ] = "window:64",
    plan: Annotated[
        str | None,
        typer.Option(help="Selection of tokens in every step, such as 'divprune:25%'.", show_default=False),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Reuse features of static tokens between frames (STC-Cacher).")
    ] = False,
    fps: Annotated[float, typer.Option(help="Frames per second that are read.")] = 2.0,
    every: Annotated[float, typer.Option(help="Seconds of the clip between answers, above 0.")] = 10.0,
    system: Annotated[str | None, typer.Option(help="System prompt.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 128,
    dtype: Dtype = "auto",
    device: HubDevice = None,
    device_map: DeviceMap = None,
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Read a video file as a stream, and answer a question every few seconds and at its end.

    Frames are decoded, encoded and cached one by one, and the policy decides what stays in the KV cache, so that memory
    does not grow with the length of the file. An answer knows the cached frames up to its time. Decoding needs PyAV,
    and models with video need torchvision (foveate[video]).
    """
    import foveate
    from foveate.streaming import STCCacher, frames_of, parse_policy

    if not 0 < every < math.inf:
        raise FoveateError(f"--every is a number of seconds above 0, not {every:g}.")
    chosen = parse_policy(policy)
    frames = frames_of(file, fps)
    first = next(frames)  # a file that cannot be read ends before the model is loaded
    loaded, processor = foveate.load(
        model, **loading_options(revision, attn_implementation, device_map, dtype=dtype, device=device)
    )
    options: dict[str, Any] = {"policy": chosen, "plan": plan, "reuse": STCCacher() if reuse else None}
    answers: list[dict[str, Any]] = []
    with foveate.stream(loaded, processor, system=system, fps=fps, **options) as session:

        def answer(time: float) -> None:
            text = session.ask(question, max_new_tokens=max_new_tokens)
            answers.append({"time": time, "answer": text, "cached_tokens": session.cached_tokens})
            if not as_json:
                console.print(f"{time:8.1f} s  {printable(text)}", markup=False, soft_wrap=True)

        session.feed(first[1], time=first[0])
        time, due = first[0], every
        for time, frame in frames:
            session.feed(frame, time=time)
            if time >= due:
                due = every * (time // every + 1)  # frames may be further apart than answers
                answer(time)
        if not answers or answers[-1]["time"] < time:
            answer(time)
        if as_json:
            print_json({"answers": answers, "frames": session.num_frames, "kv_bytes": session.kv_bytes})
        else:
            console.print(f"{session.num_frames} frames read, {session.cached_tokens} tokens cached", markup=False)
