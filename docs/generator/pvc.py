"""Draws `pvc.svg`, the figure of progressive visual compression.

It uses plain arithmetic and no libraries, so that every machine writes the same bytes. The token grids are real: each
coarse cell is the mean of four finer cells, as computed by a stage before training.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import sqrt

Colour = tuple[float, float, float]
Cells = list[list[Colour]]

WIDTH, HEIGHT = 1240, 622
INK, SOFT, FAINT = "#1d2733", "#5c6b7a", "#c9d1d9"
TEAL, AMBER, ROSE = "#0f766e", "#c2700c", "#b4235a"
FONT = "font-family='Helvetica, Arial, sans-serif'"
BLOCKS = ((0, 5, 1.0, TEAL), (5, 19, 1 / 4, AMBER), (19, 27, 1 / 16, ROSE))
"""First block, end, tokens as a fraction of N, colour: 27 blocks with stages after blocks 4 and 18."""


def eye(u: float, v: float) -> Colour:
    """Colour of a drawn eye at u in [-4/3, 4/3] (right) and v in [-1, 1] (down)."""

    def mix(a: Colour, b: Colour, t: float) -> Colour:
        t = min(max(t, 0.0), 1.0)
        return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)

    skin = mix((250, 231, 214), (226, 183, 156), (v + 1) / 2.4)
    brow = -0.86 + 0.16 * u * u
    if abs(u) < 1.12 and abs(v - brow) < 0.085 * (1.15 - abs(u)) + 0.02:
        return (74, 52, 46)
    lid = 0.66 * (1 - (u / 1.2) * (u / 1.2))
    if lid <= 0 or abs(v) > lid:
        shadow = 1 - min(abs(abs(v) - max(lid, 0)) / 0.09, 1.0)
        return mix(skin, (70, 45, 45) if v < 0 else (176, 118, 98), shadow if abs(u) < 1.22 else 0)
    if (u + 0.17) * (u + 0.17) + (v + 0.2) * (v + 0.2) < 0.0095:
        return (255, 255, 255)
    radius = sqrt(u * u + v * v)
    if radius < 0.23:
        return (12, 20, 36)
    if radius < 0.54:
        ring = (radius - 0.23) / 0.31
        return mix((94, 226, 204), (13, 92, 99), ring * ring)
    shade = mix((255, 255, 255), (214, 222, 230), (radius - 0.5) / 0.7)
    return mix((150, 140, 148), shade, (v + lid) / 0.2)


def sample(columns: int, rows: int, inside: int = 5) -> Cells:
    """The eye sampled on a grid; every cell is the mean of `inside` x `inside` points."""

    def cell(column: int, row: int) -> Colour:
        points = [
            eye(((column + (i + 0.5) / inside) / columns * 2 - 1) * 4 / 3, (row + (j + 0.5) / inside) / rows * 2 - 1)
            for i, j in product(range(inside), repeat=2)
        ]
        return mean(points)

    return [[cell(column, row) for column in range(columns)] for row in range(rows)]


def mean(colours: list[Colour]) -> Colour:
    """The mean of some colours."""
    n = len(colours)
    return (sum(c[0] for c in colours) / n, sum(c[1] for c in colours) / n, sum(c[2] for c in colours) / n)


def merge(cells: Cells) -> Cells:
    """Every 2 x 2 window becomes one cell."""
    return [
        [mean([cells[2 * r][2 * c], cells[2 * r][2 * c + 1], cells[2 * r + 1][2 * c], cells[2 * r + 1][2 * c + 1]])
         for c in range(len(cells[0]) // 2)]
        for r in range(len(cells) // 2)
    ]  # fmt: skip


def hexadecimal(colour: Colour) -> str:
    """`#rrggbb`."""
    return "#" + "".join(f"{int(channel + 0.5):02x}" for channel in colour)


def number(value: float) -> str:
    """A number with at most two decimals and without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def low(index: int | str) -> str:
    """A subscript that does not depend on the font."""
    return f"<tspan dy='4' font-size='75%'>{index}</tspan><tspan dy='-4'>&#8203;</tspan>"


class Drawing:
    """Lines of SVG."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Append one element."""
        self.lines.append(line)

    def text(
        self, x: float, y: float, words: str, size: float = 15, colour: str = INK, anchor: str = "middle", bold=False
    ) -> None:
        """Words at a baseline; `words` may hold tspans."""
        weight = " font-weight='600'" if bold else ""
        self.add(
            f"<text x='{number(x)}' y='{number(y)}' font-size='{number(size)}' fill='{colour}' "
            f"text-anchor='{anchor}'{weight}>{words}</text>"
        )

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str, more: str = "") -> None:
        """A filled rectangle."""
        self.add(
            f"<rect x='{number(x)}' y='{number(y)}' width='{number(width)}' height='{number(height)}' "
            f"fill='{fill}'{' ' + more if more else ''}/>"
        )

    def arrow(self, x: float, y: float, length: float, colour: str = SOFT) -> None:
        """A horizontal arrow to the right."""
        end = x + length
        self.add(
            f"<path d='M{number(x)} {number(y)}H{number(end - 7)}' stroke='{colour}' stroke-width='2' fill='none'/>"
            f"<path d='M{number(end)} {number(y)}l-9 -5v10z' fill='{colour}'/>"
        )

    def grid(self, x: float, y: float, width: float, cells: Cells, gap: float) -> None:
        """Cells as separate tiles, one per token, also if neighbors have the same color."""
        side = width / len(cells[0])
        for row, colours in enumerate(cells):
            for column, colour in enumerate(colours):
                self.rectangle(
                    x + column * side + gap / 2, y + row * side + gap / 2, side - gap, side - gap, hexadecimal(colour)
                )


def pixels(drawing: Drawing, x: float, y: float, width: float, cells: Cells) -> None:
    """Cells without gaps: one path per color, of runs within rows; colors in steps of 8 reduce the size."""

    def step(channel: float) -> float:
        return min(255.0, round(channel / 8) * 8)

    side = width / len(cells[0])
    paths: dict[str, list[str]] = {}
    for row, colours in enumerate(cells):
        stepped = [hexadecimal((step(c[0]), step(c[1]), step(c[2]))) for c in colours]
        start = 0
        for column in range(1, len(stepped) + 1):
            if column == len(stepped) or stepped[column] != stepped[start]:
                run = f"M{start} {row}h{column - start}"
                paths.setdefault(stepped[start], []).append(run)
                start = column
    drawing.add(f"<g transform='translate({number(x)} {number(y)}) scale({number(side)}) translate(0 .5)'>")
    for colour, runs in paths.items():
        drawing.add(f"<path d='{''.join(runs)}' stroke='{colour}' stroke-width='1.05'/>")
    drawing.add("</g>")


def sequence(drawing: Drawing, fine: Cells) -> None:
    """The upper half: the image and its tokens at each stage of the transformer."""
    top, width = 78, 224
    height = width * 3 / 4
    middle = top + height / 2
    lefts = [40, 314, 588, 862]
    coarse = merge(fine)
    panels: list[tuple[Cells, float, str, str, str]] = [
        (fine, 0.7, "N tokens", "blocks 0 to 4", TEAL),
        (coarse, 1.2, "N / 4 tokens", "blocks 5 to 18", AMBER),
        (merge(coarse), 2, "N / 16 tokens", "blocks 19 to 26", ROSE),
    ]
    pixels(drawing, lefts[0], top, width, sample(112, 84, 2))
    lines = "".join(f"M{number(lefts[0] + i * width / 32)} {top}v{number(height)}" for i in range(1, 32))
    lines += "".join(f"M{lefts[0]} {number(top + i * width / 32)}h{width}" for i in range(1, 24))
    drawing.add(f"<path d='{lines}' stroke='#ffffff' stroke-opacity='0.45' stroke-width='0.7' fill='none'/>")
    drawing.text(lefts[0] + width / 2, top - 32, "pixels", 17, INK, bold=True)
    drawing.text(lefts[0] + width / 2, top - 12, "native size, split into small patches", 14, SOFT)

    for left, (cells, gap, tokens, blocks, colour) in zip(lefts[1:], panels, strict=True):
        drawing.grid(left, top, width, cells, gap)
        drawing.text(left + width / 2, top - 32, tokens, 17, colour, bold=True)
        drawing.text(left + width / 2, top - 12, blocks, 14, SOFT)
        drawing.arrow(left - 44, middle, 38)
    drawing.text(lefts[1] - 25, middle - 14, "embed", 12.5, SOFT)
    for left in lefts[2:]:
        drawing.text(left - 25, middle - 14, "stage", 12.5, INK, bold=True)
        drawing.text(left - 25, middle + 22, "4 → 1", 12.5, SOFT)

    out = lefts[3] + width
    drawing.arrow(out + 6, middle, 38)
    drawing.text(out + 25, middle - 14, "MLP", 12.5, SOFT)
    last = merge(coarse)
    tile = 9.5
    column = out + 52
    drawing.text(column + 31, top - 32, "sequence", 17, INK, bold=True)
    drawing.text(column + 31, top - 12, "image, text", 14, SOFT)
    picked = [colour for row in last for colour in row][: 6 * 14]
    for place in range(6 * 14):
        row, at = divmod(place, 6)
        y = top + row * (height / 14)
        visual = place < len(picked)
        fill = hexadecimal(picked[place]) if visual else "#dfe5ea"
        drawing.rectangle(column + at * 10.6, y + 0.6, tile, tile, fill, "rx='1.5'")


def work(drawing: Drawing, x: float, y: float, width: float, height: float) -> None:
    """Lower right: the number of tokens that each block processes."""
    drawing.text(x, y - 34, "Cost per block", 17, INK, "start", bold=True)
    drawing.text(x, y - 13, "tokens in each of the 27 blocks; dashed: without stages", 14, SOFT, "start")
    step = width / 27
    drawing.rectangle(x, y, width, height, "none", f"stroke='{FAINT}' stroke-width='1.5' stroke-dasharray='5 4'")
    for first, end, fraction, colour in BLOCKS:
        for block in range(first, end):
            tall = height * fraction
            drawing.rectangle(x + block * step + 1.2, y + height - tall, step - 2.4, tall, colour, "rx='1.5'")
    for first, end, fraction, colour in BLOCKS:
        share = {1.0: "N", 1 / 4: "N/4", 1 / 16: "N/16"}[fraction]
        centre = x + (first + end) / 2 * step
        inside = fraction == 1.0
        drawing.text(
            centre, y + 24 if inside else y + height - height * fraction - 10, share, 15,
            "#ffffff" if inside else colour, bold=True,
        )  # fmt: skip
        drawing.text(centre, y + height + 20, f"{end - first} blocks", 13.5, SOFT)
    total = sum((end - first) * fraction for first, end, fraction, _ in BLOCKS)
    drawing.text(
        x + width - 16, y + 30, f"tokens × blocks: {number(total)} N instead of 27 N", 15, INK, "end", bold=True
    )


def stage(drawing: Drawing, x: float, y: float) -> None:
    """Lower left: one window in a content-adaptive stage, four channels of it."""
    drawing.text(x - 22, y - 34, "One stage, one window", 17, INK, "start", bold=True)
    drawing.text(x - 22, y - 13, "a softmax over the four tokens, separately for every channel", 14, SOFT, "start")
    values = ((0.9, 0.3, 0.5, 0.2), (0.7, 0.8, 0.3, 0.3), (0.2, 0.4, 0.9, 0.6), (0.4, 0.2, 0.6, 0.9))
    logits = ((6.0, 0.4, 0.5, 1.0), (1.0, 7.0, 0.4, 1.0), (0.4, 0.6, 8.0, 1.0), (0.6, 0.5, 1.2, 1.0))
    weights = [[row[c] / sum(line[c] for line in logits) for c in range(4)] for row in logits]
    bar, tall, pitch = 15.0, 62.0, 92.0
    names = [f"x{low(token)}" for token in (1, 2, 3, 4)]

    def channels(left: float, up: float, column: list[float], colour: Callable[[int], str]) -> None:
        drawing.rectangle(left - 5, up - 5, 4 * bar + 10, tall + 10, "#ffffff", f"stroke='{FAINT}' rx='5'")
        for channel, value in enumerate(column):
            level = tall * value
            drawing.rectangle(left + channel * bar + 1.5, up + tall - level, bar - 3, level, colour(channel), "rx='1'")

    shades = ("#0f766e", "#2b9d8f", "#6cc3b5", "#b3e0d8")
    for token in range(4):
        left = x + 34 + token * pitch
        channels(left, y + 8, list(values[token]), lambda channel: shades[channel])
        drawing.text(left + 2 * bar, y + 8 + tall + 24, names[token], 15, INK)
        drawing.text(left + 2 * bar, y + 8 + tall + 45, "×", 15, SOFT)
        channels(left, y + 136, weights[token], lambda _: "#7b8794")
    drawing.text(x + 22, y + 8 + tall / 2 + 5, "tokens", 13, SOFT, "end")
    drawing.text(x + 22, y + 136 + tall / 2 + 5, "weights", 13, SOFT, "end")
    end = x + 34 + 4 * pitch
    drawing.text(end - 9, y + 8 + tall + 45, "=", 17, SOFT)
    merged = [sum(weights[token][c] * values[token][c] for token in range(4)) for c in range(4)]
    channels(end + 16, y + 8 + tall / 2 + 32, merged, lambda channel: shades[channel])
    drawing.text(end + 16 + 2 * bar, y + 8 + tall / 2 + 32 + tall + 24, "one token", 13.5, INK)
    drawing.text(
        x + 34, y + 136 + tall + 34,
        f"weights = softmax( W{low(2)} GELU( W{low(1)} [x{low('i')} ; mean] ) ): "
        "initially all 1/4, which is average pooling",
        13.5, SOFT, "start",
    )  # fmt: skip


def draw() -> str:
    """The whole figure as SVG text."""
    drawing = Drawing()
    drawing.add(
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' {FONT} "
        f"aria-label='Progressive visual compression: tokens of an image are merged four to one inside the encoder'>"
    )
    drawing.rectangle(0, 0, WIDTH, HEIGHT, "#fbfaf7", "rx='14'")
    sequence(drawing, sample(32, 24))
    drawing.add(f"<path d='M40 288H{WIDTH - 40}' stroke='{FAINT}' stroke-width='1'/>")
    stage(drawing, 62, 366)
    work(drawing, 690, 366, 510, 204)
    drawing.add("</svg>")
    return "\n".join(drawing.lines) + "\n"
