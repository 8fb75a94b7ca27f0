"""Draw the two example images, `receipt.png` and `chart.png`, into the folder of this file.

    python examples/draw.py

They are made only for the examples: the generators of the training data use none of this code, these words or these
layouts. Pillow draws them in its default font and in DejaVu Sans Mono, which is part of matplotlib.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).parent
MONOSPACE = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

ITEMS = [
    ("2 Sourdough loaf", "9.80"),
    ("1 Rye bread", "4.20"),
    ("3 Cinnamon bun", "7.50"),
    ("1 Apple tart", "5.40"),
    ("2 Filter coffee", "6.00"),
]
TOTALS = [("Subtotal", "32.90"), ("Tax 5%", "1.65")]
TOTAL = ("TOTAL", "34.55")

MONTHS = {"April": 34, "May": 52, "June": 71, "July": 88, "August": 63}
BARS = [(66, 133, 190), (66, 133, 190), (66, 133, 190), (222, 122, 48), (66, 133, 190)]


def mono(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono at a size in pixels."""
    return ImageFont.truetype(str(MONOSPACE / f"DejaVuSansMono{'-Bold' if bold else ''}.ttf"), size)


def receipt(size: tuple[int, int] = (480, 640)) -> Image.Image:
    """A slightly rotated receipt on a wooden table."""
    paper = Image.new("L", (384, 580), 250)
    draw = ImageDraw.Draw(paper)
    left, right, middle, top = 30, 354, 192, 24

    def centred(text: str, font: ImageFont.FreeTypeFont, step: int) -> None:
        nonlocal top
        draw.text((middle, top), text, font=font, fill=28, anchor="ma")
        top += step

    def row(name: str, amount: str, font: ImageFont.FreeTypeFont, step: int) -> None:
        nonlocal top
        draw.text((left, top), name, font=font, fill=28)
        draw.text((right, top), amount, font=font, fill=28, anchor="ra")
        top += step

    def rule() -> None:
        nonlocal top
        for x in range(left, right, 9):
            draw.line((x, top + 6, x + 4, top + 6), fill=90)
        top += 20

    centred("HARBOUR BAKERY", mono(27, bold=True), 38)
    centred("12 Quay Street, Oban", mono(17), 25)
    centred("Tel. 01631 554 207", mono(17), 30)
    row("14/03/2025", "08:42", mono(17), 25)
    row("Receipt 4071", "Till 2", mono(17), 24)
    rule()
    for name, price in ITEMS:
        row(name, price, mono(18), 29)
    rule()
    for name, price in TOTALS:
        row(name, price, mono(18), 29)
    row(*TOTAL, mono(24, bold=True), 40)
    row("Card", "34.55", mono(18), 30)
    rule()
    centred("Thank you, Marion served you", mono(17), 34)
    bars = np.random.default_rng(7).integers(1, 5, 56)
    x = 72
    for index, width in enumerate(bars):
        if index % 2 == 0 and x + width < 312:
            draw.rectangle((x, top, x + int(width) - 1, top + 40), fill=40)
        x += int(width) + 1

    rng = np.random.default_rng(1)
    shade = 6 * np.sin(np.linspace(0.3, 5.2, 580))[:, None] + 3 * np.linspace(-1, 1, 384)[None]
    lit = np.asarray(paper, np.float32) + shade - 5 + rng.normal(0, 2.2, (580, 384))
    paper = Image.fromarray(lit.clip(0, 255).astype(np.uint8))

    table = wood(size, rng)
    angle, place = 1.6, (46, 30)
    turned = paper.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    shadow = Image.new("L", size, 0)
    shadow.paste(150, (place[0] + 7, place[1] + 9), turned.getchannel("A"))
    shadow = shadow.filter(ImageFilter.GaussianBlur(7))
    table.paste((30, 20, 12), mask=shadow)
    table.paste(turned.convert("RGB"), place, turned.getchannel("A"))
    warm = Image.merge("RGB", [Image.new("L", size, level) for level in (255, 250, 240)])
    return ImageChops.multiply(table, warm)


def wood(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Brown wooden boards with grain."""
    width, height = size
    grain = Image.fromarray(rng.normal(0, 5, (height, 14)).astype(np.float32))
    grain = np.asarray(grain.resize(size, Image.Resampling.BICUBIC))
    boards = (np.arange(height) // 128 % 3 - 1)[:, None] * 7.0
    light = grain + boards + np.linspace(10, -10, width)[None]
    light[np.arange(height) % 128 < 2] -= 30
    colour = np.array([134, 96, 64], np.float32) + light[..., None] * np.array([1.0, 0.85, 0.7])
    return Image.fromarray(colour.clip(0, 255).astype(np.uint8))


def chart(size: tuple[int, int] = (480, 360)) -> Image.Image:
    """A bar chart with a title, an axis, grid lines and values."""
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    left, right, top, bottom, most = 62, 462, 62, 296, 100

    def level(value: float) -> float:
        return bottom - (bottom - top) * value / most

    draw.text(
        (size[0] / 2, 14), "Visitors to the lighthouse", font=ImageFont.load_default(24), fill=(30, 34, 40), anchor="ma"
    )
    for value in range(0, most + 1, 25):
        draw.line((left, level(value), right, level(value)), fill=(226, 229, 233))
        draw.text((left - 9, level(value)), str(value), font=ImageFont.load_default(16), fill=(84, 90, 98), anchor="rm")
    pitch = (right - left) / len(MONTHS)
    for index, ((month, value), colour) in enumerate(zip(MONTHS.items(), BARS, strict=True)):
        centre = left + pitch * (index + 0.5)
        draw.rectangle((round(centre - 25), round(level(value)), round(centre + 25), bottom), fill=colour)
        draw.text(
            (centre, level(value) - 5), str(value), font=ImageFont.load_default(18), fill=(30, 34, 40), anchor="mb"
        )
        draw.text((centre, bottom + 9), month, font=ImageFont.load_default(18), fill=(30, 34, 40), anchor="ma")
    draw.line((left, bottom, right, bottom), fill=(84, 90, 98), width=2)
    draw.text(
        (left + (right - left) / 2, 329),
        "thousands per month, 2024",
        font=ImageFont.load_default(15),
        fill=(84, 90, 98),
        anchor="ma",
    )
    return image


if __name__ == "__main__":
    receipt().save(FOLDER / "receipt.png", optimize=True)
    chart().save(FOLDER / "chart.png", optimize=True)
