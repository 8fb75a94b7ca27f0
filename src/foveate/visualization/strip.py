"""Figure of a clip: its frames side by side, with the tokens that the language model reads.

Drawn from plain values, as `foveate.visualization.selection`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from foveate.clips import Clip
from foveate.visualization.canvas import GAP, INK, LINE, MARGIN, MUTED, PAPER, WIDTH, blank, load_font, shorten
from foveate.visualization.selection import WORDS, draw_crops, draw_legend, token_map

#: Most frames in a row, most rows, and the tallest frame in pixels.
MOST_COLUMNS, MOST_ROWS, TALLEST_FRAME = 8, 6, 300
#: Space between frames, and height of the text below one.
BETWEEN, CAPTION = 12, 30


def draw_strip(clip: Clip, document: dict[str, Any] | None) -> Image.Image:
    """Draw the frames of a clip in rows, with a heading and a legend; see `draw_frames`.

    Args:
        clip: the frames that were read.
        document: token selection of the clip, from `foveate.answering.selections.selected`; None: no plan was followed.
    """
    width = WIDTH - 2 * MARGIN - (WORDS + GAP if document else 0)
    frames, _ = draw_frames(clip, document, width)
    legend = draw_legend(document) if document else None
    heading = 64
    block, draw = blank(heading + max(frames.height, legend.height if legend else 0))
    title = "what the language model reads" if document else "the frames that the model reads"
    draw.text((0, 0), title, font=load_font(24), fill=INK)
    draw.text((0, 31), summary(clip, document), font=load_font(20), fill=MUTED)
    block.paste(frames, (0, heading))
    if legend:
        block.paste(legend, (block.width - WORDS, heading))
    return block


def draw_frames(clip: Clip, document: dict[str, Any] | None, width: int) -> tuple[Image.Image, np.ndarray]:
    """Draw the frames of a clip in rows, each with its time and its tokens that are read.

    A frame of the figure is what the model makes tokens of: where it merges frames in time, the first of them. Of more
    than fit six rows, some are shown at even steps.

    Args:
        clip: the frames that were read.
        document: as for `draw_strip`.
        width: of the figure in pixels.

    Returns:
        The figure, and the token under each of its pixels (height, width), or -1.
    """
    shown = _shown(_frames(clip, document))
    rows = math.ceil(len(shown) / min(MOST_COLUMNS, math.ceil(math.sqrt(1.5 * len(shown)))))
    columns = math.ceil(len(shown) / rows)
    side = (width + BETWEEN) // columns - BETWEEN
    panels = [draw_crops(document, frame, crops, (side, TALLEST_FRAME)) for frame, crops, _, _ in shown]
    step_across, step_down = panels[0].width + BETWEEN, panels[0].height + CAPTION + BETWEEN
    figure = Image.new("RGB", (min(width, columns * step_across), rows * step_down), PAPER)
    tokens = np.full((figure.height, figure.width), -1)
    draw, font = ImageDraw.Draw(figure), load_font(18)
    for number, (panel, (_, crops, time, count)) in enumerate(zip(panels, shown, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * step_across + 1, row * step_down + 1
        figure.paste(panel, (left, top))
        draw.rectangle((left - 1, top - 1, left + panel.width, top + panel.height), outline=LINE)
        caption = shorten(f"{time:.1f} s{count}", font, panel.width)
        draw.text((left, top + panel.height + 3), caption, font=font, fill=MUTED)
        if crops:
            area = tokens[top : top + panel.height, left : left + panel.width]
            area[:] = token_map({"crops": crops}, panel.size)[: area.shape[0], : area.shape[1]]
    return figure, tokens


def summary(clip: Clip, document: dict[str, Any] | None) -> str:
    """How many frames were read, of how many seconds, and how many of them `draw_frames` shows."""
    frames, total = len(clip.frames), len(_frames(clip, document))
    text = f"{frames} frame{'s' if frames > 1 else ''} of {clip.metadata['duration']:.1f} s"
    return text + (f", {MOST_COLUMNS * MOST_ROWS} are shown" if total > MOST_COLUMNS * MOST_ROWS else "")


def _shown(frames: list[Any]) -> list[Any]:
    """Return the frames that fit the rows, at even steps."""
    total, most = len(frames), MOST_COLUMNS * MOST_ROWS
    if total <= most:
        return frames
    return [frames[(2 * number + 1) * total // (2 * most)] for number in range(most)]


def _frames(clip: Clip, document: dict[str, Any] | None) -> list[tuple[Image.Image, list[dict[str, Any]], float, str]]:
    """Return image, crop, time and count of tokens of every frame of the figure."""
    if document is None:
        return [
            (Image.fromarray(frame), [], time, "") for frame, time in zip(clip.frames, clip.timestamps, strict=True)
        ]
    crops = document["crops"]
    merged = -(-len(clip.frames) // len(crops))  # frames to a crop, where the model merges them in time
    found = []
    for number, crop in enumerate(crops):
        place = min(number * merged, len(clip.frames) - 1)
        # The true time: the model may read that of a constant rate.
        time = clip.timestamps[place]
        found.append((Image.fromarray(clip.frames[place]), [crop], time, f": {crop['kept']} of {crop['tokens']}"))
    return found
