"""Figure of one answer: the image, the merging windows of every stage, token counts and times.

Drawn with Pillow alone, in its built-in font.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from foveate.answering import PARTS, Answer, Pooling, Stage
from foveate.clips import Clip, open_clip
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.images import open_image
from foveate.visualization.canvas import (
    ACCENT,
    GAP,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PAPER,
    TALLEST,
    THINNEST,
    TOKEN_TINT,
    WIDTH,
    blank,
    duration,
    load_font,
    shorten,
    wrap,
)
from foveate.visualization.selection import draw_selection, joined
from foveate.visualization.strip import draw_strip

TINTS = {
    "preprocess": (134, 142, 150),
    "encoder": (28, 100, 200),
    "connector": (112, 72, 232),
    "prefill": (12, 133, 99),
    "decode": (240, 140, 0),
}

#: Windows are outlined where they are at least this many pixels wide in the figure.
FINEST_GRID = 4


def draw_answer(answer: Answer, image: Any) -> Image.Image:
    """Draw an answer as one RGB image, 1600 pixels wide.

    Of a clip the frames are shown in rows (see `foveate.visualization.strip`). Otherwise the first panel is the image;
    one panel a stage shows the 2 x 2 windows that the stage merged. The tokens that entered a content-adaptive stage
    are tinted by their effect on its output (see `foveate.answering.Pooling`): clear up to the median of the image,
    full for the strongest 2 %. Where a plan was followed, one more panel shows which tokens the language model reads
    (see `foveate.visualization.selection`).

    Args:
        answer: from `ask`; with ``keep_pooling=True`` the panels are tinted, otherwise they show the windows only.
        image: the image that was asked about, in any form that `open_image` reads; or the clip, as a file, its bytes
            or a `foveate.clips.Clip` with the frames that were read.

    Raises:
        FoveateError: the answer is about several images, or the image or the clip cannot be read.
    """
    if answer.frames is not None:
        clip = image if isinstance(image, Clip) else clip_of(answer, image)
        if len(clip.frames) != answer.frames:
            raise FoveateError(f"the answer is about {answer.frames} frames, and this clip has {len(clip.frames)}.")
        strip = draw_strip(clip, answer.selection[0] if answer.selection else None)
        return _stacked([_words(answer), strip, _token_bars(answer), _time_bar(answer)])
    if answer.image_size is None:
        raise FoveateError("a figure shows one image or one clip, and this answer is about several images.")
    processed = open_image(image)
    if answer.processed_size is not None:
        processed = processed.resize(answer.processed_size, Image.Resampling.BICUBIC)
    merging = [stage for stage in answer.stages[1:] if stage.grid is not None]
    size = _panel_size(processed.size, panels=1 + len(merging))

    blocks = [_words(answer), _panels(answer, processed, merging, size)]
    if answer.pooling:
        blocks.append(_legend(answer.pooling))
    if answer.selection:
        blocks += [
            draw_selection(document, open_image(image), WIDTH - 2 * MARGIN) for document in joined(answer.selection)
        ]
    return _stacked([*blocks, _token_bars(answer), _time_bar(answer)])


def _stacked(blocks: list[Image.Image]) -> Image.Image:
    """Draw blocks one below the other, with margins."""
    height = 2 * MARGIN + sum(block.height for block in blocks) + GAP * (len(blocks) - 1)
    canvas = Image.new("RGB", (WIDTH, height), PAPER)
    top = MARGIN
    for block in blocks:
        canvas.paste(block, (MARGIN, top))
        top += block.height + GAP
    return canvas


def clip_of(answer: Answer, source: Any) -> Clip:
    """Decode the frames of an answer once more; what a plan composed of frames is composed again."""
    step = None if answer.plan is None else Plan.of(answer.plan).frame_step
    if step is not None and step.method.composes:
        return open_clip(source, sampler=step, question=answer.question)
    return open_clip(source, times=answer.timestamps)


def _words(answer: Answer) -> Image.Image:
    """Question and answer, above each other."""
    small, question, text = load_font(20), load_font(30), load_font(40)
    width = WIDTH - 2 * MARGIN
    question_lines, answer_lines = (
        wrap(answer.question, question, width),
        wrap(answer.text or "(no answer)", text, width),
    )
    block, draw = blank(32 + 40 * len(question_lines) + 52 * len(answer_lines) + 4)
    draw.text((0, 0), f"{_short(answer.model)} was asked", font=small, fill=MUTED)
    top = 32
    for line in question_lines:
        draw.text((0, top), line, font=question, fill=INK)
        top += 40
    for line in answer_lines:
        draw.text((0, top), line, font=text, fill=ACCENT)
        top += 52
    return block


def _short(model: str) -> str:
    name = "the embedded model" if model == "embedded" else model
    return name if len(name) <= 60 else "..." + name[-57:]


def _panel_size(processed: tuple[int, int], panels: int) -> tuple[int, int]:
    """Size of the panels, which are equal and no taller than `TALLEST`; thin images are widened."""
    width = (WIDTH - 2 * MARGIN - GAP * (panels - 1)) // panels
    scale = min(width / processed[0], TALLEST / processed[1])
    return max(round(processed[0] * scale), THINNEST), max(round(processed[1] * scale), THINNEST)


def _panels(answer: Answer, processed: Image.Image, merging: list[Stage], size: tuple[int, int]) -> Image.Image:
    """Draw the image and each stage's windows, with a heading of two lines above each."""
    columns = 1 + len(merging)
    pitch = (WIDTH - 2 * MARGIN - GAP * (columns - 1)) // columns + GAP
    block, draw = blank(64 + size[1] + 2)
    effects = {pooling.stage: pooling.effect for pooling in answer.pooling}
    first = answer.stages[0]
    (width, height), *_ = answer.image_sizes
    caption = f"{width} x {height} px"
    if answer.processed_size not in (None, answer.image_size):
        caption += f", resized to {processed.width} x {processed.height}"
    panels = [("image", f"{caption}, {first.tokens} {first.name}", processed.resize(size, Image.Resampling.LANCZOS))]
    panels += [
        (stage.name, _count(stage), stage_panel(processed, stage, effects.get(stage.name), size)) for stage in merging
    ]
    for number, (title, subtitle, panel) in enumerate(panels):
        left = number * pitch
        draw.text((left, 0), title, font=load_font(24), fill=INK)
        draw.text((left, 31), subtitle, font=load_font(20), fill=MUTED)
        block.paste(panel, (left, 64))
        draw.rectangle((left - 1, 63, left + size[0], 64 + size[1]), outline=LINE)
    return block


def _count(stage: Stage) -> str:
    rows, columns = stage.grid or (1, stage.tokens)
    each = f", {stage.size[0]} x {stage.size[1]} px each" if stage.size else ""
    return f"{rows} x {columns} = {stage.tokens} tokens{each}"


def stage_panel(processed: Image.Image, stage: Stage, effect: np.ndarray | None, size: tuple[int, int]) -> Image.Image:
    """Draw the image in pale grey, tinted by the effects of its tokens, with the outlines of the windows."""
    grey = np.asarray(processed.convert("L").resize(size, Image.Resampling.LANCZOS), np.float32)
    pixels = np.repeat(255 - 0.55 * (255 - grey)[..., None], 3, axis=2)
    if effect is not None:
        strength = Image.fromarray(_strength(effect)).resize(size, Image.Resampling.NEAREST)
        pixels += np.asarray(strength)[..., None] * (np.float32(1 / 255) * np.array(ACCENT, np.float32) - 1) * pixels
    panel = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    rows, columns = stage.grid or (1, 1)
    if min(size[0] / columns, size[1] / rows) >= FINEST_GRID:
        overlay = Image.new("RGBA", size, (0, 0, 0, 0))
        draw = ImageDraw.Draw(overlay)
        for column in range(1, columns):
            draw.line([(size[0] * column / columns, 0), (size[0] * column / columns, size[1])], fill=(*INK, 52))
        for row in range(1, rows):
            draw.line([(0, size[1] * row / rows), (size[0], size[1] * row / rows)], fill=(*INK, 52))
        panel.paste(overlay, mask=overlay)
    return panel


def _range(effect: np.ndarray) -> tuple[float, float]:
    """Range of the colour scale: from the median to the effect that 2 % of the tokens exceed."""
    clear, full = (float(value) for value in np.quantile(effect, (0.5, 0.98)))
    return clear, max(full, clear + 1e-6)


def _strength(effect: np.ndarray) -> np.ndarray:
    """Strength of the tint, 0..1, of each token."""
    clear, full = _range(effect)
    return ((effect - clear) / (full - clear)).clip(0, 1).astype(np.float32)


def _legend(pooling: list[Pooling]) -> Image.Image:
    """Legend of the tint with the numbers at its ends."""
    font = load_font(20)
    block, draw = blank(60)
    draw.text(
        (0, 0),
        "Tint: effect of the pooling, how far each token draws the output of its 2 x 2 window away from the "
        "plain average, in % of its length.",
        font=font,
        fill=MUTED,
    )
    ramp = np.linspace(0, 1, 120, dtype=np.float32)[None, :, None].repeat(16, axis=0)
    ramp = Image.fromarray((255 + ramp * (np.array(ACCENT) - 255)).astype(np.uint8))
    left = 0
    for stage in pooling:
        clear, full = _range(stage.effect)
        for part in (stage.stage, f"{100 * clear:.0f} %", ramp, f"{100 * full:.0f} %"):
            if isinstance(part, Image.Image):
                block.paste(part, (left, 38))
                left += part.width + 10
            else:
                draw.text((left, 34), part, font=font, fill=INK)
                left += round(font.getlength(part)) + 10
        text = f"(weight of one channel: 1/4 +- {stage.spread:.2f})"
        draw.text((left, 34), text, font=font, fill=MUTED)
        left += round(font.getlength(text)) + 40
    return block


def _token_bars(answer: Answer) -> Image.Image:
    """Bar chart of token counts by stage, longest first; the last one is the language model's."""
    font, row = load_font(20), 36
    block, draw = blank(34 + row * len(answer.stages))
    title = load_font(24)
    summary = answer.tokens.summary("the image" if answer.frames is None else "the clip")
    text = shorten(f"Tokens: the language model reads {summary}", title, WIDTH - 2 * MARGIN)
    draw.text((0, 0), text, font=title, fill=INK)
    label = min(
        180 if answer.plan is None else 460, 20 + max(160, *(round(font.getlength(s.name)) for s in answer.stages))
    )
    for number, stage in enumerate(answer.stages):
        top = 36 + row * number
        length = max(round((WIDTH - 2 * MARGIN - 540) * stage.tokens / answer.tokens.unmerged), 3)
        draw.text((0, top), shorten(stage.name, font, label - 20), font=font, fill=MUTED)
        draw.rounded_rectangle((label, top + 2, label + length, top + 22), radius=3, fill=TOKEN_TINT)
        draw.text((label + length + 12, top), str(stage.tokens), font=font, fill=INK)
    return block


def _time_bar(answer: Answer) -> Image.Image:
    """Stacked bar of times by part, with a legend in milliseconds."""
    font, width = load_font(20), WIDTH - 2 * MARGIN
    parts = [(part, answer.times[part]) for part in PARTS if part in answer.times]
    total = sum(seconds for _, seconds in parts)
    block, draw = blank(104)
    draw.text((0, 0), f"Time: {duration(answer.times['total'])} on {answer.device}", font=load_font(24), fill=INK)
    left = 0.0
    for part, seconds in parts:
        right = left + width * seconds / total
        draw.rectangle((round(left), 38, max(round(right) - 1, round(left)), 62), fill=TINTS[part])
        left = right
    at = 0
    for part, seconds in parts:
        draw.rounded_rectangle((at, 78, at + 18, 96), radius=4, fill=TINTS[part])
        text = f"{part} {duration(seconds)}"
        draw.text((at + 28, 75), text, font=font, fill=INK)
        at += 28 + round(font.getlength(text)) + 36
    return block
