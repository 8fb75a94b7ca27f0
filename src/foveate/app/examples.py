"""Example questions that the page offers: about images from `examples.json`, which tests check, and a rendered clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.text_files import read_json

#: The list.
TABLE = Path(__file__).with_name("examples.json")
#: The rendered clip: task, seed, seconds and frames per second.
CLIP = ("clip_order", 3, 8.0, 4)


@dataclass(frozen=True)
class Example:
    """A question with its answer.

    Attributes:
        image: file name in the folder `examples` of the source tree.
        question: what is asked.
        answer: what a right answer contains.
    """

    image: str
    question: str
    answer: str


def examples() -> list[Example]:
    """Read the examples, in the order in which they are offered."""
    return [Example(**row) for row in read_json(TABLE)]


def save_example_clip(folder: Path) -> tuple[str, str]:
    """Write a rendered clip as an MP4 file that browsers play.

    Args:
        folder: Where the file goes; needs PyAV.

    Returns:
        The file and a question about it.
    """
    import av

    from foveate.synthetic.clips import render_clip

    task, seed, seconds, fps = CLIP
    sample = render_clip(task, seed, "heldout", (224, 224), seconds=seconds, fps=fps, difficulty=0.5)
    path = folder / "shapes.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = sample.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in sample.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path), sample.question
