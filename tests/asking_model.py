"""A tiny model that really asks for more of an image: trained in seconds to write a few conversations by heart."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from PIL import Image

import foveate
from foveate.methods.acquisition.adaptvision import AdaptVision
from foveate.methods.acquisition.visionthink import VisionThink
from foveate.training.grpo.rollouts import Conversation, Question, supervised_loss
from foveate.training.methods.shared.acquisition import SHORT
from tests.tiny_model import noise, save_llava_uhd

SIZE = (64, 48)
BOX = [2, 3, 20, 15]


def answer(text: str) -> str:
    return f"<think></think><answer>{text}</answer>"


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


FULL, CROP = call("resize_image", action="resize"), call("request_local_region", bbox_2d=BOX)
#: What the model writes, by the question: in the first turn, and in the second one if there is one.
SCRIPTS = {
    "A": [answer("7")],
    "B": [FULL, answer("42")],
    "B, and nothing else": [FULL, answer("6")],
    "C": [CROP, answer("9")],
    "D": [call("request_local_region", bbox_2d=[90, 90, 99, 99])],
    "E": [FULL, FULL],
    "F": ["<tool_call>resize"],
}


def picture() -> Image.Image:
    return noise(*SIZE)


@cache
def folder() -> Path:
    """The model in a folder, with its prompts."""
    place = Path(tempfile.mkdtemp())
    model, processor = foveate.load(save_llava_uhd(place), device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.model.language_model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        conversations = [
            Conversation(model, processor, method, SHORT, (200, 200)) for method in (VisionThink(), AdaptVision())
        ]
        rollouts = [
            conversations["request_local" in turns[0]].scripted(
                Question(picture(), text, ""), turns[: 1 if text in "DF" else 2]
            )
            for text, turns in SCRIPTS.items()
        ]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS, pct_start=0.1)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = supervised_loss(conversations[0], rollouts)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if float(loss.detach()) < 2e-3:
                break
    model.save_pretrained(place)
    SHORT.save(place)
    return place


STEPS = 500
