"""A rendered clip with a question, which the page offers besides the images of `foveate.shipped`."""

from __future__ import annotations

from pathlib import Path

from foveate.clips.writing import write_clip

#: The rendered clip: task, seed, seconds and frames per second.
CLIP = ("clip_order", 3, 8.0, 4)


def save_example_clip(folder: Path) -> tuple[str, str]:
    """Write a rendered clip as an MP4 file that browsers play.

    Args:
        folder: Where the file goes; needs PyAV.

    Returns:
        The file and a question about it.
    """
    from foveate.synthetic.clips import render_clip

    task, seed, seconds, fps = CLIP
    sample = render_clip(task, seed, "heldout", (224, 224), seconds=seconds, fps=fps, difficulty=0.5)
    path = folder / "shapes.mp4"
    write_clip(path, sample.frames, fps, codec="libx264")
    return str(path), sample.question
