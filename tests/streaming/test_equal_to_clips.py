"""A stream that keeps everything answers as the model does about the whole clip."""

from __future__ import annotations

import pytest
import torch

import foveate
from tests.streaming.small_streams import NAMES, clip, inputs, small

QUESTION = "What happens?"


@pytest.mark.parametrize(("frames", "fps"), [(5, 1.0), (6, 3.0)])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_about_the_clip(name: str, frames: int, fps: float) -> None:
    model, processor = small(name)
    pixels = clip(frames)
    whole = inputs(model, processor, pixels, QUESTION, fps)
    with torch.inference_mode():
        expected = model(**whole).logits[0, -1]
        written = model.generate(**whole, max_new_tokens=6, do_sample=False)
    text = processor.tokenizer.decode(written[0, whole["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    with foveate.stream(model, processor, fps=fps) as session:
        for number, frame in enumerate(pixels):
            session.feed(frame, time=number / fps)
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-5, rtol=1e-5)
        assert session.ask(QUESTION, max_new_tokens=6) == text
