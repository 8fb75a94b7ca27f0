"""Figure of token selection: kept tokens clear, merged ones tinted by group, dropped ones pale.

Drawn from plain values (`foveate.answering.selections.selected`), so that a saved JSON document can be drawn later as
well.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from foveate.visualization.canvas import (
    ACCENT,
    GAP,
    INK,
    LINE,
    MUTED,
    PAPER,
    TALLEST,
    THINNEST,
    load_font,
    shorten,
    wrap,
)

#: How strong the colour of a group is, and how much contrast a dropped token keeps on which grey.
TINT, PALE, GREY = 0.42, 0.3, 224
#: Width of the legend next to the image, and maximum width of thumbnails.
WORDS, THUMBNAIL = 400, 300
#: Crops are numbered where they are at least this wide and tall in the figure.
FINEST_CROP = 44

#: How pale the tokens are that leave inside the language model: those that leave first the most.
FADED = (0.7, 0.35)

KEPT, MERGED, DROPPED = 0, 1, 2


def joined(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the documents of the tiles of one image into one; others are returned unchanged."""
    if len(documents) < 2 or not any(crop["kind"] == "tile" for document in documents for crop in document["crops"]):
        return documents
    joint: dict[str, Any] = documents[0] | {"steps": [dict(step) for step in documents[0]["steps"]]}
    joint |= {name: [] for name in ("crops", "kept", "merged", "dropped", "separators")}
    joint["layers"] = [layer | {"kept": []} for layer in documents[0]["layers"]]
    shares = [document.get("shares") for document in documents]
    known = [tile_shares for tile_shares in shares if tile_shares is not None]
    joint["shares"] = [share for tile_shares in known for share in tile_shares] if len(known) == len(shares) else None
    joint["measured"] = [
        score | {"values": [value for document in documents for value in document["measured"][number]["values"]]}
        for number, score in enumerate(documents[0].get("measured", []))
    ]
    before = 0
    for document in documents:
        for crop in document["crops"]:
            index = [place if place < 0 else place + before for place in crop["index"]]
            joint["crops"].append(crop | {"index": index})
        for name in ("kept", "dropped", "separators"):
            joint[name] += [place + before for place in document[name]]
        for group in document["merged"]:
            tokens = [place + before for place in group["tokens"]]
            joint["merged"].append({"at": group["at"] + before, "tokens": tokens})
        for layer, tile_layer in zip(joint["layers"], document["layers"], strict=True):
            layer["kept"] += [place + before for place in tile_layer["kept"]]
        before += document["tokens_in"]
    for name in ("tokens_in", "tokens_kept"):
        joint[name] = sum(document[name] for document in documents)
        for number, step in enumerate(joint["steps"]):
            step[name] = sum(document["steps"][number][name] for document in documents)
        for number, layer in enumerate(joint["layers"]):
            layer[name] = sum(document["layers"][number][name] for document in documents)
    joint["tokens_left"] = sum(document["tokens_left"] for document in documents)
    joint["inert"] = all(document["inert"] for document in documents)
    joint["notes"] = list(dict.fromkeys(note for document in documents for note in document["notes"]))
    return [joint]


def draw_selection(document: dict[str, Any], image: Image.Image, width: int) -> Image.Image:
    """Draw the token selection of one image with a legend.

    Args:
        document: from `foveate.answering.selections.selected`.
        image: the image, upright.
        width: of the block in pixels.
    """
    encoded, over, apart = _parts(document, image)
    states, groups = _of_tokens(document)
    leaves = _leaving(document)
    tiled = len(document["crops"]) > 1

    panel_width = width - WORDS - GAP - (THUMBNAIL + GAP if apart else 0)
    panel = _panel(encoded, over, states, groups, leaves, (panel_width, TALLEST), numbered=tiled)
    thumbnails = [
        _panel(encoded, [crop], states, groups, leaves, (THUMBNAIL, TALLEST), numbered=False) for crop in apart
    ]
    words = _words(document, states, tiled)
    tall = max(panel.height, *(drawn.height for drawn in (*thumbnails, words)))
    heading = 64 if tiled else 40
    block = Image.new("RGB", (width, heading + tall + 2), PAPER)
    draw = ImageDraw.Draw(block)
    title = "what the language model reads"
    draw.text((0, 0), title, font=load_font(24), fill=INK)
    place = 1
    for crops, drawn in zip([over, *([crop] for crop in apart)], (panel, *thumbnails), strict=True):
        block.paste(drawn, (place, heading))
        draw.rectangle((place - 1, heading - 1, place + drawn.width, heading + drawn.height), outline=LINE)
        if tiled:
            kind = "thumbnail" if crops is not over else f"{len(crops)} crops" if len(crops) > 1 else crops[0]["kind"]
            kept, tokens = sum(crop["kept"] for crop in crops), sum(crop["tokens"] for crop in crops)
            text = shorten(f"{kind}: {kept} of {tokens} tokens", load_font(20), max(drawn.width, 260))
            draw.text((place, 31), text, font=load_font(20), fill=MUTED)
        place += drawn.width + GAP
    block.paste(words, (place, heading))
    return block


def draw_tokens(document: dict[str, Any], image: Image.Image, max_size: tuple[int, int]) -> Image.Image:
    """Draw the token selection of one image without text.

    Args:
        document: from `foveate.answering.selections.selected`.
        image: the image, upright.
        max_size: width and height in pixels, of which the image fills one.
    """
    encoded, over, _ = _parts(document, image)
    return _panel(encoded, over, *_of_tokens(document), _leaving(document), max_size, numbered=False)


def draw_crops(
    document: dict[str, Any] | None, image: Image.Image, crops: list[dict[str, Any]], max_size: tuple[int, int]
) -> Image.Image:
    """Draw the token selection of some crops over an image.

    Args:
        document: from `foveate.answering.selections.selected`; None: the image as it is.
        image: what the crops show, upright.
        crops: of the document.
        max_size: width and height in pixels, of which the image fills one.
    """
    if document is None:
        nothing = np.zeros(0, int)
        return _panel(image, [], nothing, nothing, nothing, max_size, numbered=False, pale=False)
    return _panel(image, crops, *_of_tokens(document), _leaving(document), max_size, numbered=False)


def draw_legend(document: dict[str, Any]) -> Image.Image:
    """Draw the legend of the token selection of a clip; see `draw_selection`."""
    return _words(document, _of_tokens(document)[0], tiled=False)


def token_map(document: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the token under every pixel of the image that `draw_tokens` draws.

    Args:
        document: from `foveate.answering.selections.selected`.
        size: width and height of the image.

    Returns:
        (height, width) indices of the image's tokens, or -1.
    """
    tokens = np.full((size[1], size[0]), -1)
    over = [crop for crop in document["crops"] if crop["kind"] not in ("thumbnail", "frame")]
    for crop in over or document["crops"][:1]:
        down, across, index = _cells(crop, size)
        tokens[np.ix_(down, across)] = index
    return tokens


def _cells(crop: dict[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixel rows (h,) and columns (w,) that a crop covers, and the token of each (h, w)."""
    left, top, right, bottom = (edge * side for edge, side in zip(crop["box"], (*size, *size), strict=True))
    rows, columns = crop["grid"]
    across = np.arange(max(round(left), 0), min(round(right), size[0]))
    down = np.arange(max(round(top), 0), min(round(bottom), size[1]))
    column = ((across + 0.5 - left) / (right - left) * columns).astype(int).clip(0, columns - 1)
    row = ((down + 0.5 - top) / (bottom - top) * rows).astype(int).clip(0, rows - 1)
    return down, across, np.array(crop["index"]).reshape(rows, columns)[row][:, column]


def _parts(
    document: dict[str, Any], image: Image.Image
) -> tuple[Image.Image, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the encoded part of the image, its crops, and thumbnails."""
    left, top, right, bottom = document["seen"]
    encoded = image.crop(
        (
            round(left * image.width),
            round(top * image.height),
            max(round(right * image.width), round(left * image.width) + 1),
            max(round(bottom * image.height), round(top * image.height) + 1),
        )
    )
    over = [crop for crop in document["crops"] if crop["kind"] not in ("thumbnail", "frame")]
    apart = [crop for crop in document["crops"] if crop["kind"] == "thumbnail"]
    if not over:  # only a thumbnail, or a clip: its first frame (see `foveate.visualization.strip` for all)
        over, apart = document["crops"][:1], []
    return encoded, over, apart


def _of_tokens(document: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return state and group (-1: none) of every token, with one more entry for cells without a token."""
    states = np.full(document["tokens_in"] + 1, DROPPED)
    groups = np.full(document["tokens_in"] + 1, -1)
    states[document["kept"]] = KEPT
    for number, group in enumerate(document["merged"]):
        states[group["tokens"]] = MERGED
        groups[group["tokens"]] = number
    return states, groups


def _leaving(document: dict[str, Any]) -> np.ndarray:
    """Return the step that drops a token inside the language model, -1: none; with one more entry at the end."""
    leaves = np.full(document["tokens_in"] + 1, -1)
    for number, layer in reversed(list(enumerate(document["layers"]))):
        dropped = np.ones(document["tokens_in"] + 1, bool)
        dropped[layer["kept"]] = False
        leaves[dropped] = number
    leaves[-1] = -1
    return leaves


def fade_of(number: int, count: int) -> float:
    """Paleness of tokens that are dropped at step `number` of `count`."""
    first, last = FADED
    return first if count == 1 else first + (last - first) * number / (count - 1)


def _tints(count: int) -> np.ndarray:
    """Create `count` colours (count, 3) in which neighbouring numbers have distant hues."""
    hues = (0.58 + 0.61803398875 * np.arange(max(count, 1))) % 1
    bright = (0.82, 0.95, 0.68)
    colours = [colorsys.hsv_to_rgb(hue, 0.8, bright[number % 3]) for number, hue in enumerate(hues)]
    return 255 * np.array(colours, np.float32)


def _panel(
    encoded: Image.Image,
    crops: list[dict[str, Any]],
    states: np.ndarray,
    groups: np.ndarray,
    leaves: np.ndarray,
    max_size: tuple[int, int],
    *,
    numbered: bool,
    pale: bool = True,
) -> Image.Image:
    """Draw crops over the image, as large as there is space for."""
    scale = min(max_size[0] / encoded.width, max_size[1] / encoded.height)
    width, height = max(round(encoded.width * scale), THINNEST), max(round(encoded.height * scale), THINNEST)
    colour = np.asarray(encoded.resize((width, height), Image.Resampling.LANCZOS).convert("RGB"), np.float32)
    grey = np.asarray(Image.fromarray(colour.astype(np.uint8)).convert("L"), np.float32)[..., None]
    pixels = np.repeat(GREY - PALE * (255 - grey), 3, axis=2) if pale else colour
    tints = _tints(int(groups.max(initial=-1)) + 1)
    boxes = []
    for crop in crops:
        down, across, index = _cells(crop, (width, height))
        if not len(across) or not len(down):
            continue
        state, group = states[index], groups[index]
        leave = np.where(state == DROPPED, -1, leaves[index])
        window = np.ix_(down, across)
        area = pixels[window]
        area[state == KEPT] = colour[window][state == KEPT]
        tinted = (0.3 * 255 + 0.7 * grey[window]) / 255 * (255 - TINT * (255 - tints[group]))
        area[state == MERGED] = tinted[state == MERGED]
        steps = int(leaves.max(initial=-1)) + 1
        for number in range(steps):
            going, fade = leave == number, fade_of(number, steps)
            area[going] = (1 - fade) * area[going] + fade * pixels[window][going]
        areas = np.where(state == MERGED, group, -1 - state) * (steps + 1) + leave + 1
        _outline(area, areas, index, state != DROPPED)
        pixels[window] = area
        boxes.append((crop, (across[0], down[0], across[-1], down[-1])))
    panel = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    for crop, (left, top, right, bottom) in boxes:
        if len(crops) > 1:
            draw.rectangle((left, top, right, bottom), outline=PAPER, width=3)
            draw.rectangle((left, top, right, bottom), outline=INK, width=1)
        if numbered and min(right - left, bottom - top) >= FINEST_CROP:
            _label(draw, str(crop["kept"]), (left + 7, top + 7), min(right - left, bottom - top))
    return panel


def _outline(pixels: np.ndarray, areas: np.ndarray, cells: np.ndarray, drawn: np.ndarray) -> None:
    """Darken the borders of areas, and slightly those of `drawn` cells (kept or merged)."""
    for axis in (0, 1):
        index = [slice(None)] * 2
        index[axis] = slice(1, None)
        inside = (np.diff(cells, axis=axis) != 0) & drawn[tuple(index)]
        edge = np.diff(areas, axis=axis) != 0
        pixels[tuple(index)][inside] *= 0.86
        pixels[tuple(index)][edge] = pixels[tuple(index)][edge] * 0.3 + 0.7 * np.array(INK, np.float32)


def _label(draw: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], cell_size: float) -> None:
    font, (left, top) = load_font(int(min(32, max(18, cell_size / 6)))), corner
    box = draw.textbbox((left + 9, top + 7), text, font=font)
    draw.rounded_rectangle((left, top, box[2] + 9, box[3] + 7), radius=8, fill=PAPER, outline=LINE)
    draw.text((left + 9, top + 7), text, font=font, fill=ACCENT)


def _words(document: dict[str, Any], states: np.ndarray, tiled: bool) -> Image.Image:
    """Draw the legend: what the colours mean, their token counts, and the effect of every step."""
    block = Image.new("RGB", (WORDS, 1200), PAPER)
    draw, font, top = ImageDraw.Draw(block), load_font(20), 0
    draw.text((0, top), f"{document['tokens_kept']} of {document['tokens_in']} tokens", font=load_font(30), fill=ACCENT)
    top += 52
    merged = int((states[:-1] == MERGED).sum())
    counts = {
        "kept": f"{len(document['kept'])} as they are",
        "merged": f"{merged} merged into {len(document['merged'])}",
        "dropped": f"{len(document['dropped'])} left out",
    }
    for kind, text in counts.items():
        if kind == "merged" and not merged:
            continue
        if kind == "dropped":
            top = _inside(draw, document, top)
        _swatch(draw, kind, top)
        draw.text((64, top), text, font=font, fill=INK)
        top += 36
    lines = []
    for step in [*document["steps"], *document["layers"]]:
        lines += [*wrap(step["method"], font, WORDS), f"{step['tokens_in']} to {step['tokens_kept']} tokens", ""]
    if tiled:
        lines += [*wrap("Numbers on the crops: how many tokens of each are read.", font, WORDS), ""]
    for note in document["notes"]:
        lines += wrap(note, font, WORDS)
    top += 16
    for line in lines:
        draw.text((0, top), line, font=font, fill=MUTED)
        top += 28 if line else 10
    return block.crop((0, 0, WORDS, min(top + 4, block.height)))


def _inside(draw: ImageDraw.ImageDraw, document: dict[str, Any], top: int) -> int:
    """Draw the token counts dropped inside the language model by layer; returns the next line."""
    going = document["tokens_kept"]
    for number, layer in enumerate(document["layers"]):
        _swatch(draw, "kept", top, fade_of(number, len(document["layers"])))
        text = f"{going - layer['tokens_kept']} of these up to layer {layer['layer'] - 1}"
        draw.text((64, top), text, font=load_font(20), fill=INK)
        going, top = layer["tokens_kept"], top + 36
    return top


def swatch_colours(kind: str, fade: float = 0.0) -> list[tuple[int, int, int]]:
    """Return the colours (red, green, blue) of tokens in a legend.

    Args:
        kind: "kept", "merged" or "dropped".
        fade: paleness of kept tokens that are dropped inside the language model.
    """
    if kind == "merged":
        red, green, blue = (255 - TINT * (255 - _tints(3))).astype(int).T.tolist()
        return list(zip(red, green, blue, strict=True))
    grey = round(255 - fade * (255 - GREY)) if kind == "kept" else GREY
    return [(grey, grey, grey)]


def _swatch(draw: ImageDraw.ImageDraw, kind: str, top: int, fade: float = 0.0) -> None:
    colours = swatch_colours(kind, fade)
    width = 48 // len(colours)
    for number, fill in enumerate(colours):
        left = width * number
        draw.rectangle(
            (left, top + 2, left + width - 1, top + 22), fill=fill, outline=LINE if kind == "dropped" else INK
        )
