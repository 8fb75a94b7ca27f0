"""Token maps of an image at several points of a model and of the frames of a clip; details of a clicked token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from foveate.answering import Answer, Stage
from foveate.clips import VideoFile
from foveate.runtime.report import NOTHING_LEFT_OUT
from foveate.visualization.answer import clip_of, stage_panel
from foveate.visualization.canvas import ACCENT, TOKEN_TINT
from foveate.visualization.selection import draw_tokens, fade_of, joined, swatch_colours, token_map
from foveate.visualization.strip import draw_frames, summary

#: Maximum width and height of an image in pixels.
MAX_SIZE = (900, 900)
#: Width in pixels of the frames of a clip, side by side.
STRIP_WIDTH = 1100
#: Sources of a token that are named one by one.
MOST_SOURCES = 12

#: What the tint of a stage means.
STRONGEST = "moves the output of its 2 x 2 window furthest from the plain average"

#: Descriptions of the measured values.
MEASURED = {
    "cls_attention": "attention of [CLS]",
    "cls_logits": "attention of [CLS] before the softmax",
    "received": "attention received",
    "hub_attention": "attention of hub tokens",
    "first_layer_attention": "attention of the question in the language model's first layer",
}


@dataclass(frozen=True)
class Swatch:
    """One entry of a legend.

    Attributes:
        colours: red, green and blue, 0 to 255, of each of its colours.
        text: what they mean.
    """

    colours: tuple[tuple[int, int, int], ...]
    text: str


@dataclass(frozen=True)
class View:
    """Map of the image's tokens at one point of the model.

    Attributes:
        title: where in the model.
        caption: what the image shows, in a sentence.
        picture: the image.
        tokens: (height, width) token under every pixel, or -1.
        grid: rows and columns of the tokens, where they are a stage's.
        stage: the stage of the encoder that is shown.
        effects: for a stage, how far each of the tokens that entered it draws its output (see `Pooling`).
        document: token selection of the plan (`foveate.answering.selections.selected`), if it is shown.
        legend: what the colours of the picture mean.
    """

    title: str
    caption: str
    picture: Image.Image
    tokens: np.ndarray
    stage: Stage | None = None
    effects: np.ndarray | None = None
    document: dict[str, Any] | None = None
    legend: tuple[Swatch, ...] = ()

    def token_at(self, x: float, y: float) -> int:
        """Return the token at a point of the image in pixels, or -1 if there is none."""
        height, width = self.tokens.shape
        if not (0 <= x < width and 0 <= y < height):
            return -1
        return int(self.tokens[int(y), int(x)])


def views(full_model: Answer, planned: Answer | None, image: Image.Image) -> list[View]:
    """Build the maps of the stages of a ViT-UHD, then of the plan's result; at least one map.

    Args:
        full_model: the answer without a plan, with pooling maps if the stages shall be tinted.
        planned: the answer with a plan.
        image: the image, upright.
    """
    shown = [_stage_view(full_model, number, image) for number, s in enumerate(full_model.stages) if s.grid is not None]
    for document in joined(planned.selection) if planned is not None else []:
        shown += _token_views(document, image)
    if not shown:
        picture = image.copy()
        picture.thumbnail(MAX_SIZE)
        caption = "The tokens of this model can be shown only with a plan."
        shown = [View("image", caption, picture, np.full((picture.height, picture.width), -1))]
    return shown


def clip_views(full_model: Answer, planned: Answer | None, clip: VideoFile) -> list[View]:
    """Draw the frames that the full model reads, then those that the plan reads with their tokens.

    Args:
        full_model: the answer without a plan.
        planned: the answer with a plan.
        clip: the file.
    """
    shown = [_frames_view(full_model, clip, "full model")]
    if planned is not None:
        shown.append(_frames_view(planned, clip, "plan"))
    return shown


def _frames_view(answer: Answer, source: VideoFile, title: str) -> View:
    clip, document = clip_of(answer, source), answer.selection[0] if answer.selection else None
    picture, tokens = draw_frames(clip, document, STRIP_WIDTH)
    counts = f"{answer.tokens.read} of {answer.tokens.full} tokens are read by the language model."
    legend = () if document is None else legend_of(document)
    return View(title, f"{summary(clip, document)}. {counts}", picture, tokens, document=document, legend=legend)


def _stage_view(answer: Answer, number: int, image: Image.Image) -> View:
    stage = answer.stages[number]
    rows, columns = stage.grid or (1, 1)
    resized = image if answer.processed_size is None else image.resize(answer.processed_size, Image.Resampling.BICUBIC)
    scale = min(MAX_SIZE[0] / resized.width, MAX_SIZE[1] / resized.height)
    size = max(round(resized.width * scale), columns), max(round(resized.height * scale), rows)
    effects = next((pooling.effect for pooling in answer.pooling if pooling.stage == stage.name), None)
    crop = {"kind": "image", "box": (0, 0, 1, 1), "grid": (rows, columns), "index": range(rows * columns)}
    caption = f"{rows} x {columns} = {stage.tokens} tokens"
    caption += f" of {stage.size[0]} x {stage.size[1]} pixels" if stage.size else ""
    caption += f": {stage.detail}."
    legend = () if effects is None else (Swatch((ACCENT,), STRONGEST),)
    picture = stage_panel(resized, stage, effects, size)
    return View(stage.name, caption, picture, token_map({"crops": [crop]}, size), stage, effects, legend=legend)


def _token_views(document: dict[str, Any], image: Image.Image) -> list[View]:
    """Build the map of the tokens that a plan keeps, and that of the thumbnail where tiles have one."""
    thumbnails = [crop for crop in document["crops"] if crop["kind"] == "thumbnail"]
    others = [crop for crop in document["crops"] if crop["kind"] != "thumbnail"]
    counts = f"{document['tokens_kept']} of {document['tokens_in']} tokens are read by the language model."
    if document["inert"]:
        counts = f"{NOTHING_LEFT_OUT.capitalize()}, {document['tokens_in']} of {document['tokens_in']}."
    shown = []
    for crops, title in ((others, "language model"), (thumbnails, "thumbnail")):
        if crops:
            part = document | {"crops": crops}
            picture = draw_tokens(part, image, MAX_SIZE)
            tokens = token_map(part, picture.size)
            shown.append(View(title, counts, picture, tokens, document=document, legend=legend_of(document)))
    return shown


def legend_of(document: dict[str, Any]) -> tuple[Swatch, ...]:
    """Build the legend of a token selection, with the count of every colour."""
    entries = [Swatch(tuple(swatch_colours("kept")), f"{len(document['kept'])} kept")]
    if merged := sum(len(group["tokens"]) for group in document["merged"]):
        text = f"{merged} merged into {len(document['merged'])}, a colour for each"
        entries.append(Swatch(tuple(swatch_colours("merged")), text))
    before = document["tokens_kept"]
    for number, layer in enumerate(document["layers"]):
        fade = fade_of(number, len(document["layers"]))
        text = f"{before - layer['tokens_kept']} of these dropped before layer {layer['layer']}"
        entries.append(Swatch(tuple(swatch_colours("kept", fade)), text))
        before = layer["tokens_kept"]
    return (*entries, Swatch(tuple(swatch_colours("dropped")), f"{len(document['dropped'])} dropped"))


@dataclass(frozen=True)
class Fact:
    """Details of a clicked token.

    Attributes:
        token: its place among the tokens of the view.
        title: which token it is.
        lines: pairs of a name and its value.
        shown: tokens that are outlined: the clicked one and those merged with it.
    """

    token: int
    title: str
    lines: tuple[tuple[str, str], ...]
    shown: tuple[int, ...]


def fact(view: View, token: int) -> Fact:
    """Describe a token of a map."""
    return _of_plan(view.document, token) if view.document is not None else _of_stage(view, token)


def _of_stage(view: View, token: int) -> Fact:
    stage = view.stage
    if stage is None or stage.grid is None:
        raise ValueError("this map has no tokens")
    row, column = divmod(token, stage.grid[1])
    lines = []
    if stage.size:
        wide, tall = stage.size
        across, down = f"{column * wide} to {(column + 1) * wide - 1}", f"{row * tall} to {(row + 1) * tall - 1}"
        lines.append(("pixels", f"x {across}, y {down} of the resized image"))
    if stage.name != "patches":
        lines.append(("sources", f"rows {2 * row} and {2 * row + 1}, columns {2 * column} and {2 * column + 1} before"))
    if view.effects is not None:
        window = view.effects[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
        each = ", ".join(f"{100 * effect:.1f} %" for effect in window)
        lines.append(("effect", f"{each} of the output's length, row by row (0 would be plain average pooling)"))
    return Fact(token, f"{stage.name}, row {row}, column {column}", tuple(lines), (token,))


def _of_plan(document: dict[str, Any], token: int) -> Fact:
    group = next((group for group in document["merged"] if token in group["tokens"]), None)
    lines, shown = [], (token,)
    if group is not None:
        shown = tuple(group["tokens"])
        lines.append(
            ("state", f"merged: one of {len(shown)} tokens that become one, at {_place(document, group['at'])}")
        )
        shares = document.get("shares")
        parts = {source: 1 / len(shown) if shares is None else shares[source] for source in shown}
        first = sorted(parts, key=lambda source: -parts[source])[:MOST_SOURCES]
        more = "" if len(first) == len(parts) else f" and {len(parts) - len(first)} more"
        sources = ", ".join(f"{source} ({100 * parts[source]:.3g} %)" for source in first)
        lines.append(("sources", f"{sources}{more}"))
    elif token in document["kept"]:
        lines += [("state", "kept unchanged"), ("sources", f"{token} alone")]
    else:
        lines.append(("state", "dropped: the language model does not read it"))
    if token not in document["dropped"]:
        lines += _layers(document, token if group is None else group["at"])
    scores = document.get("measured", [])
    for score in scores:
        values = score["values"]
        rank = 1 + sum(value > values[token] for value in values)
        layer = "" if score["layer"] is None else f" at block {score['layer']}"
        what = f"{MEASURED[score['kind']]}{layer}"
        lines.append(("score", f"{values[token]:.4g}, rank {rank} of {len(values)}: {what}"))
    if not scores:
        lines.append(("score", "none: this plan does not rank tokens by a measured value"))
    return Fact(token, f"Token {token}, {_place(document, token)}", tuple(lines), shown)


def _layers(document: dict[str, Any], token: int) -> list[tuple[str, str]]:
    """Describe the layer of the language model at which a token is dropped."""
    for layer in document["layers"]:
        if token not in layer["kept"]:
            return [("layers", f"dropped before layer {layer['layer']} of the language model ({layer['method']})")]
    return [("layers", "kept to the last layer")] if document["layers"] else []


def _place(document: dict[str, Any], token: int) -> str:
    """Describe the position of a token in its crop."""
    tiles = sum(crop["kind"] == "tile" for crop in document["crops"])
    number = 0
    for frame, crop in enumerate(document["crops"]):
        number += crop["kind"] == "tile"
        if token in crop["index"]:
            row, column = divmod(crop["index"].index(token), crop["grid"][1])
            kind = "" if crop["kind"] == "image" else f" of the {crop['kind']}"
            kind = f" of tile {number}" if crop["kind"] == "tile" and tiles > 1 else kind
            if crop["kind"] == "frame":
                kind = f" of frame {frame}" + (f" at {crop['seconds']:.1f} s" if "seconds" in crop else "")
            return f"row {row}, column {column}{kind}"
    return "between the rows of the image"


def outlined(view: View, chosen: Fact) -> Image.Image:
    """Draw outlines around the tokens that a fact is about."""
    inside = np.isin(view.tokens, chosen.shown)
    edge = np.zeros_like(inside)
    cells = np.where(inside, view.tokens, -1)
    for axis in (0, 1):
        padded = np.pad(cells, [(1, 1) if own == axis else (0, 0) for own in (0, 1)], constant_values=-1)
        changes = np.diff(padded, axis=axis) != 0
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(1, None), slice(None, -1)
        edge |= changes[tuple(first)] | changes[tuple(second)]
    # A line of three pixels, half of it outside, so that it can be found on a phone.
    wide = edge.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            moved = np.roll(edge, step, axis)
            ends = [slice(None)] * 2
            ends[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            moved[tuple(ends)] = False
            wide |= moved
    pixels = np.array(view.picture.convert("RGB"))
    pixels[wide] = ACCENT if view.stage is None else TOKEN_TINT  # stages are tinted in the one, groups in the other
    return Image.fromarray(pixels)
