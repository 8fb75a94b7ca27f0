"""Figure of a clip: its frames side by side, with the tokens that the language model reads.

Drawn from plain values, as `foveate.visualization.selection`.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from foveate.clips import Clip
from foveate.visualization.canvas import GAP, INK, LINE, MARGIN, MUTED, WIDTH, blank, load_font, shorten
from foveate.visualization.selection import WORDS, draw_crops, draw_legend

#: Most frames in a row, most rows, and the tallest frame in pixels.
MOST_COLUMNS, MOST_ROWS, TALLEST_FRAME = 8, 6, 300
#: Space between frames, and height of the text below one.
BETWEEN, CAPTION = 12, 30


def draw_strip(clip: Clip, document: dict[str, Any] | None) -> Image.Image:
    """Draw the frames of a clip in rows, each with its time and its tokens that are read.

    A frame of the figure is what the model makes tokens of: where it merges frames in time, the first of them. Of more
    than fit six rows, some are shown at even steps.

    Args:
        clip: the frames that were read.
        document: token selection of the clip, from `foveate.answering.selections.selected`; None: no plan was followed.
    """
    shown = _frames(clip, document)
    width = WIDTH - 2 * MARGIN - (WORDS + GAP if document else 0)
    total, most = len(shown), MOST_COLUMNS * MOST_ROWS
    if total > most:
        shown = [shown[(2 * number + 1) * total // (2 * most)] for number in range(most)]
    rows = math.ceil(len(shown) / min(MOST_COLUMNS, math.ceil(math.sqrt(1.5 * len(shown)))))
    columns = math.ceil(len(shown) / rows)
    side = (width + BETWEEN) // columns - BETWEEN
    panels = [draw_crops(document, frame, crops, (side, TALLEST_FRAME)) for frame, crops, _, _ in shown]
    step_across, step_down = panels[0].width + BETWEEN, panels[0].height + CAPTION + BETWEEN
    legend = draw_legend(document) if document else None
    heading = 64
    tall = max(rows * step_down, legend.height if legend else 0)
    block, draw = blank(heading + tall)
    title = "what the language model reads" if document else "the frames that the model reads"
    draw.text((0, 0), title, font=load_font(24), fill=INK)
    frames, seconds = len(clip.frames), clip.metadata["duration"]
    subtitle = f"{frames} frame{'s' if frames > 1 else ''} of {seconds:.1f} s"
    if total > most:
        subtitle += f", {len(shown)} are shown"
    draw.text((0, 31), subtitle, font=load_font(20), fill=MUTED)
    font = load_font(18)
    for number, (panel, (_, _, time, count)) in enumerate(zip(panels, shown, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * step_across + 1, heading + row * step_down
        block.paste(panel, (left, top))
        draw.rectangle((left - 1, top - 1, left + panel.width, top + panel.height), outline=LINE)
        caption = shorten(f"{time:.1f} s{count}", font, panel.width)
        draw.text((left, top + panel.height + 3), caption, font=font, fill=MUTED)
    if legend:
        block.paste(legend, (block.width - WORDS, heading))
    return block


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
