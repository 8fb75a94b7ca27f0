"""A recipe small enough to train in a test, and its data."""

import copy
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

VISION = {
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "merger_layer_index": [0, 1],
    "init_pos_emb_height": 8,
    "init_pos_emb_width": 8,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}
IMAGES = {"scale_resolution": 128, "min_resolution": 32, "max_edge": 256}
EVERYTHING = {"vision_tower": 1e-3, "stages": 1e-3, "connector": 1e-3, "language_model": 1e-3}


def recipe(output: Path, *stages: dict, **changes) -> dict:
    """The content of a recipe file; a stage may leave out what it shares with `small_stage`."""
    return {
        "output": str(output),
        "seed": 3,
        "bf16": False,
        "log_every": 2,
        "save_every": 4,
        "model": {
            "new": {
                "vision": copy.deepcopy(VISION),
                "text": copy.deepcopy(TEXT),
                "images": {"scale_resolution": 128, "min_resolution": 32, "max_edge": 256},
            }
        },
        "stages": list(stages),
        **changes,
    }


def small_stage(data: list[dict], **changes) -> dict:
    return {"name": "one", "steps": 8, "batch_size": 4, "data": data, "train": dict(EVERYTHING), **changes}


def write_conversations(folder: Path, count: int = 12) -> Path:
    """A JSONL file of `count` pictures of words of 1 to 6 letters, of two sizes; answers differ in length."""
    letters = random.Random(0)
    rows = []
    for number in range(count):
        word = "".join(letters.choices("abcdefgh", k=1 + number % 6))
        image = Image.new("RGB", (64, 32) if number % 2 else (64, 64), "white")
        ImageDraw.Draw(image).text((5, 5), word, fill="black")
        image.save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nRead."}, {"from": "gpt", "value": word}]
        rows.append({"image": f"{number}.png", "conversations": turns})
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def read_log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
