"""Reads a video file as a stream, and asks a question every few seconds.

    python examples/streaming.py clip.mp4 "What happens?" --model Qwen/Qwen3-VL-8B-Instruct --every 10 --window 64

Frames are decoded one by one and forgotten, and the KV cache holds the newest steps, so that memory does not depend on
the length of the file. Decoding needs `pip install 'foveate[video]'`. The command `foveate stream` does the same with
more options; this is a start for streams of your own.
"""

from __future__ import annotations

import argparse

import foveate
from foveate.streaming import SlidingWindow, STCCacher, frames_of


def main() -> None:
    """Feed the file, and print an answer every `--every` seconds and at the end."""
    parser = argparse.ArgumentParser(description="Ask about a video file while it is read as a stream.")
    parser.add_argument("file")
    parser.add_argument("question")
    parser.add_argument("--model", default="Qwen/Qwen3-VL-8B-Instruct")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second that are read")
    parser.add_argument("--every", type=float, default=10.0, help="seconds of the clip between answers")
    parser.add_argument("--window", type=int, default=64, help="steps that stay in the cache")
    parser.add_argument("--plan", help="selection of tokens in every step, such as stc:30%%")
    parser.add_argument("--reuse", action="store_true", help="reuse features of static tokens in the encoder")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    model, processor = foveate.load(options.model)
    reuse = STCCacher() if options.reuse else None
    policy, time = SlidingWindow(options.window), 0.0
    with foveate.stream(model, processor, policy=policy, plan=options.plan, reuse=reuse) as session:
        due = options.every
        for time, frame in frames_of(options.file, options.fps):
            session.feed(frame, time=time)
            if time >= due:
                due = options.every * (time // options.every + 1)
                print(f"{time:.1f} s: {session.ask(options.question, max_new_tokens=options.max_new_tokens)}")
        print(f"{time:.1f} s: {session.ask(options.question, max_new_tokens=options.max_new_tokens)}")
        print(f"{session.num_frames} frames read, {session.cached_tokens} tokens cached")


if __name__ == "__main__":
    main()
