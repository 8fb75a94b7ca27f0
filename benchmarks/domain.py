"""Measures how often `foveate ask` warns that an image is unlike those that the embedded model was trained on.

    python benchmarks/domain.py [--count 100]

Images are rendered from the held-out split: pages of the domain, which should have no warning; the same pages at
another size, which should have one; and pages of text whose capitals all have one height, to see where warnings begin.
Weights do not matter, only what the image processor says of the training.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate.answering.limits import beyond_training
from foveate.benchmark.profiling import hardware, head
from foveate.benchmark.results import write_json
from foveate.loading import load_skeleton
from foveate.statistics import wilson_interval
from foveate.synthetic import render, render_text_page

#: Tasks of the domain that show text, and all of them.
READING = ("snippet", "read_field", "table_cell", "receipt_total", "bar_chart", "sign")
DOMAIN = (*READING, "count_shapes", "shape_colour")
#: Shortest side of the images in pixels; difficulty; number of the first image.
SHORTEST, DIFFICULTY, FIRST = 160, 0.7, 30_000
#: Longest sides relative to the limit, and heights of capitals in pixels.
LARGER, CAPITALS = (1.5, 2), (6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 20, 24)
#: Pages that are made smaller: their capitals then have at most so many pixels of the smallest that the model reads.
SMALLER = (0.5, 0.67)
NOTE = "Images of the held-out split, at a difficulty of 0.7. Interval: Wilson, 95 %."


@dataclass(frozen=True)
class Rate:
    """How many of some images have a warning.

    Args:
        kind: "inside", "larger", "smaller" or "capitals".
        what: The task, the factor, or the height of capitals in pixels.
        count: Images.
        warned: Those with a warning.
        low: Lower end of the 95 % Wilson interval of the share.
        high: Upper end.
    """

    kind: str
    what: str
    count: int
    warned: int
    low: float
    high: float

    @classmethod
    def of(cls, kind: str, what: str, processor: Any, images: Iterator[Image.Image]) -> Rate:
        """Count the warnings about some images."""
        warned = [bool(beyond_training(processor, image)) for image in images]
        interval = (round(x, 4) for x in wilson_interval(sum(warned), len(warned)))
        return cls(kind, what, len(warned), sum(warned), *interval)


def pages(task: str, count: int, longest: int, least: float) -> Iterator[Image.Image]:
    """Pages of the held-out split that the model was made for."""
    for number in range(count):
        yield render(
            task, FIRST + number, "heldout", sides=(SHORTEST, longest), difficulty=DIFFICULTY, least=least
        ).image


def resized(images: Iterator[Image.Image], factor: float) -> Iterator[Image.Image]:
    """The same pages at another size."""
    for image in images:
        yield image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def lines(cap: float, count: int) -> Iterator[Image.Image]:
    """Pages of text with capitals of one height."""
    for number in range(count):
        rng = random.Random(f"domain {cap} {number}")
        size = (rng.randint(240, 400), rng.randint(160, 320))
        yield render_text_page(rng, size, split="heldout", difficulty=DIFFICULTY, caps=(cap, cap)).image


def measured(processor: Any, count: int) -> Iterator[Rate]:
    """Rates of all groups of images."""
    longest, least = processor.image_processor.trained_size, processor.image_processor.trained_text_height
    for task in DOMAIN:
        yield Rate.of("inside", task, processor, pages(task, count, longest, least))
    for factor in LARGER:
        images = (image for task in DOMAIN for image in pages(task, -(-count // len(DOMAIN)), longest, least))
        whole = (image for image in resized(images, factor) if max(image.size) > longest)
        yield Rate.of("larger", f"{factor:g}", processor, whole)
    for factor in SMALLER:
        images = (image for task in READING for image in pages(task, -(-count // len(READING)), longest, least))
        yield Rate.of("smaller", f"{factor:g}", processor, resized(images, factor))
    for cap in CAPITALS:
        yield Rate.of("capitals", f"{cap:g}", processor, lines(cap, count))


def main(options: argparse.Namespace) -> None:
    """Measure and write."""
    _, processor = load_skeleton(options.model)
    rates = []
    for rate in measured(processor, options.count):
        rates.append(asdict(rate))
        print(f"{rate.kind:9} {rate.what:14} {rate.warned:4} of {rate.count}", flush=True)
    limits = processor.image_processor
    settings = {
        "count": options.count,
        "trained_size": limits.trained_size,
        "trained_text_height": limits.trained_text_height,
    }
    command = shlex.join(["python", *sys.argv])
    write_json(
        options.output, {**head("domain", command, hardware(torch.device("cpu")), settings, NOTE), "rates": rates}
    )


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; by default the embedded one")
    parser.add_argument("--count", type=int, default=100, help="images of each group")
    parser.add_argument(
        "-o", "--output", type=Path, default=root / "benchmarks/results/domain-embedded.json", help="result file"
    )
    main(parser.parse_args())
