"""Draw the frames of a scene."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from foveate.synthetic.augmentation import noise, sheet
from foveate.synthetic.clips.acts import ClipRequest
from foveate.synthetic.clips.scene import Scene, Sign
from foveate.synthetic.page import DoesNotFit, Page
from foveate.synthetic.sample import Character
from foveate.synthetic.shapes import on, silhouette, tint
from foveate.synthetic.signs import plate_outline


def draw(brief: ClipRequest, scene: Scene, times: list[float]) -> tuple[np.ndarray, dict[str, list[Character]]]:
    """Frames ``(T, H, W, 3)`` uint8 of a scene at these seconds, and the characters of each text of its sign.

    What does not move is the same in all frames, but for the noise and the light of difficult clips.

    Raises:
        DoesNotFit: a text does not fit its sign.
    """
    rng, difficulty = brief.rng, brief.difficulty
    ground = sheet(rng, brief.width, brief.height, tint(rng, brief.ground, difficulty / 2), difficulty / 2)
    mattes = []
    for actor in scene.actors:
        turn = rng.uniform(-20, 20) * difficulty if actor.kind not in ("diamond", "square") else rng.uniform(-6, 6)
        mattes.append((silhouette(actor.kind, actor.radius, turn)[0], tint(rng, actor.colour, difficulty)))
    signs = {} if scene.sign is None else _signs(brief, scene.sign, ground)
    frames = np.empty((len(times), brief.height, brief.width, 3), np.uint8)
    for number, second in enumerate(times):
        image = (ground if scene.sign is None else signs[scene.sign.text(second)].image).copy()
        for actor, (matte, colour) in zip(scene.actors, mattes, strict=True):
            if actor.visible(second):
                x, y = actor.place(second)
                image.paste(colour, (round(x - matte.width / 2), round(y - matte.height / 2)), matte)
        frames[number] = np.asarray(image)
    return _filmed(brief, frames), {text: page.characters for text, page in signs.items()}


def _signs(brief: ClipRequest, sign: Sign, ground: Image.Image) -> dict[str, Page]:
    """The ground with the sign, for each of its texts."""
    rng = brief.rng
    left, top, right, bottom = sign.box
    outline, (across, down) = plate_outline(sign.plate, left, top, right, bottom)
    fill = tint(rng, sign.colour, brief.difficulty)
    ink, font, scale = on(fill), brief.font(), 2
    mask = Image.new("L", (scale * ground.width, scale * ground.height), 0)
    ImageDraw.Draw(mask).polygon([(scale * x, scale * y) for x, y in outline], fill=255)
    plain = ground.copy()
    plain.paste(fill, (0, 0), mask.reduce(scale))
    widest = max(font.width(text, 1.05) for _, text in sign.texts)
    cap = min((right - left) * across / widest, (bottom - top) * down / 1.4)
    if cap < 1.2 * brief.least_cap:
        raise DoesNotFit("sign")
    cap *= rng.uniform(0.85, 1) if cap > 18 else 1
    drawn = {text: Page(plain.copy()) for _, text in sign.texts}
    for text, page in drawn.items():
        page.text_centred((left + right) / 2, (top + bottom) / 2 + cap / 2, text, font.face(cap), ink)
    return drawn


def _filmed(brief: ClipRequest, frames: np.ndarray) -> np.ndarray:
    """Frames as a camera gives them: with noise of their own and uneven light, in difficult clips."""
    rng, difficulty = brief.rng, brief.difficulty
    grain = rng.uniform(1, 2 + 8 * difficulty) if rng.random() < 0.5 * difficulty else 0.0
    light = rng.uniform(2, 4 + 16 * difficulty) if rng.random() < 0.4 * difficulty else 0.0
    if not grain and not light:
        return frames
    values = frames.astype(np.int16)
    for frame in values:
        if grain:
            frame += (noise(rng, brief.width, brief.height) * grain).astype(np.int16)[:, :, None]
        if light:
            frame += round(rng.uniform(-light, light))
    return np.clip(values, 0, 255).astype(np.uint8)
