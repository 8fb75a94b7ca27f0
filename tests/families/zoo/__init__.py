"""A small random model of every family, and prompts with images for it.

Each module here is one family. It has

- `MODELS`: functions by name, each making a model of real `transformers` classes with random weights (the same ones
  every time), in float32 and evaluation mode;
- `prompts(model, rows, side, seed)`: inputs for a batch of prompts, as the family's processor would write them. `rows`
  lists for every prompt the sizes of its images in units (whatever a family can vary: (height, width) in tokens for
  native resolution, ignored where the size is fixed); text of random tokens stands around each image. Pixels depend on
  the seed and the image's place alone, so that a prompt is the same alone and in a batch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

Rows = Sequence[Sequence[tuple[int, int]]]

#: Spread of random weights: large, so that logits depend on every input.
SPREAD = 0.2
PAD = 0
VOCABULARY = 120
IMAGE, VIDEO, START, END = 119, 118, 117, 116


@dataclass(frozen=True)
class Specimen:
    """A family's small model."""

    family: str
    name: str
    make: Callable[[], Any]
    prompts: Callable[..., dict[str, Any]]

    def model(self) -> Any:
        """The model; always the same object, in evaluation mode."""
        return _made(self.make)


@lru_cache(maxsize=4)
def _made(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    with torch.no_grad():  # trained models never answer with the placeholder of an image
        model.get_output_embeddings().weight[VIDEO:] = 0
    return model


@cache
def zoo() -> dict[str, Specimen]:
    """All specimens by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, make in module.MODELS.items():
            found[name] = Specimen(module.FAMILY.get(name, name), name, make, module.prompts)
    return found


def text(seed: int, count: int) -> list[int]:
    """`count` text tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 100, (count,), generator=generator).tolist()


def pixels(seed: int, *shape: int) -> Tensor:
    """Random pixel values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pad(rows: Sequence[Sequence[int]], side: str) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of prompts of different lengths, padded on the left or right."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def conversation(rows: Rows, tokens_of: Callable[[tuple[int, int]], list[int]], seed: int, side: str) -> dict[str, Any]:
    """Prompts in which text stands before, between and after images; `tokens_of` writes one image's tokens."""
    written = []
    for row, sizes in enumerate(rows):
        tokens = text(seed + 100 * row, 2 + row % 3)
        for place, size in enumerate(sizes):
            tokens += tokens_of(size) + text(seed + 100 * row + place + 1, 3)
        written.append(tokens + text(seed + 100 * row + 50, 3))
    return pad(written, side)


def image_seeds(rows: Rows, seed: int) -> list[tuple[int, tuple[int, int]]]:
    """A seed and the size of every image, in the order of the prompts."""
    return [(seed + 1000 * row + place, size) for row, sizes in enumerate(rows) for place, size in enumerate(sizes)]


def llama(**fields: Any) -> dict[str, Any]:
    """Fields of a small Llama-like text configuration."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": SPREAD,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        **fields,
    }
