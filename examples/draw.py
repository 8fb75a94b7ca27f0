"""Draw receipts, forms and charts. Each is made from its number, and comes with questions and their answers.

    python examples/draw.py    # draws the images of this folder again

The drawings are made only for the examples: the generators of the training data use none of this code, these words or
these layouts. Pillow draws them in its default font and in DejaVu, which is part of matplotlib. Most of a page is
empty, the longer side is at most 560 pixels, and capitals have at least 12 pixels: what the embedded model is made for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).parent
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
INK, PALE_INK = (28, 28, 28), (84, 90, 98)

#: Shops with their addresses, and what they sell with its price in pence.
SHOPS = (
    ("HARBOUR BAKERY", "12 Quay Street, Oban", {"Rye bread": 420, "Sourdough": 490, "Apple tart": 540, "Coffee": 300,
                                                "Cheese roll": 365, "Oat cake": 215}),
    ("MEADOW GARDEN", "4 Mill Lane, Kelso", {"Tomato plant": 275, "Watering can": 1190, "Seed tray": 345,
                                             "Plant pot": 620, "Garden twine": 235, "Trowel": 850}),
    ("CORNER BOOKSHOP", "31 Bridge Road, Ayr", {"Road map": 695, "Notebook": 380, "Pencil set": 565, "Postcard": 120,
                                                "Wall planner": 945, "Crime novel": 799}),
    ("STATION CAFE", "2 Railway Square, Perth", {"Leek soup": 525, "Scone": 245, "Green tea": 260, "Ham toast": 610,
                                                 "Fruit salad": 435, "Lemonade": 285}),
)  # fmt: skip
GIVEN = ("Iona", "Callum", "Freya", "Duncan", "Morag", "Struan", "Elspeth", "Hamish")
FAMILY = ("Fairley", "Buchan", "Lockhart", "Ogilvie", "Drummond", "Haldane", "Kinnear", "Rattray")
TOWNS = ("Oban", "Kelso", "Ayr", "Perth", "Elgin", "Wick", "Nairn", "Troon")
CLUBS = ("Rowing Club", "Chess Circle", "Choir Society", "Hill Walkers")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
PLACES = ("lighthouse", "museum", "castle", "harbour", "distillery")
BLUE, ORANGE = (66, 133, 190), (222, 122, 48)


@dataclass(frozen=True)
class Drawing:
    """An image with questions about it, each with its answer, the question to start with first."""

    image: Image.Image
    questions: tuple[tuple[str, str], ...]


def mono(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono at a size in pixels."""
    return ImageFont.truetype(str(DEJAVU / f"DejaVuSansMono{'-Bold' if bold else ''}.ttf"), size)


def sans(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at a size in pixels."""
    return ImageFont.truetype(str(DEJAVU / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)


def receipt(number: int) -> Drawing:
    """A slightly rotated receipt on a table."""
    rng = np.random.default_rng((1, number))
    shop, address, goods = SHOPS[number % len(SHOPS)]
    bought = [str(name) for name in rng.permutation(list(goods))[:3]]
    counts = [int(count) for count in rng.integers(1, 4, len(bought))]
    prices = [count * goods[name] for name, count in zip(bought, counts, strict=True)]
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(2022, 2027))
    date, total = f"{day:02}/{month:02}/{year}", amount(sum(prices))

    def at(top: int) -> int:
        """Every second receipt is shorter."""
        return top - top * (number % 2) // 4

    paper = Image.new("L", (336, at(470)), 250)
    draw = ImageDraw.Draw(paper)
    left, right, middle = 26, 310, 168

    def centred(top: int, text: str, font: ImageFont.FreeTypeFont) -> None:
        draw.text((middle, at(top)), text, font=font, fill=28, anchor="ma")

    def row(top: int, name: str, value: str, font: ImageFont.FreeTypeFont) -> None:
        draw.text((left, at(top)), name, font=font, fill=28)
        draw.text((right, at(top)), value, font=font, fill=28, anchor="ra")

    def rule(top: int) -> None:
        for x in range(left, right, 9):
            draw.line((x, at(top), x + 4, at(top)), fill=90)

    centred(26, shop, mono(24, bold=True))
    centred(64, address, mono(17))
    row(112, date, f"{int(rng.integers(8, 19)):02}:{int(rng.integers(0, 60)):02}", mono(17))
    rule(150)
    for place, (name, count, price) in enumerate(zip(bought, counts, prices, strict=True)):
        row(172 + 36 * place, f"{count} {name}", amount(price), mono(18))
    rule(288)
    row(310, "TOTAL", total, mono(24, bold=True))
    centred(410, "Thank you", mono(17))

    shade = 5 * np.sin(np.linspace(0.3, 5.2, paper.height))[:, None] + 3 * np.linspace(-1, 1, paper.width)[None]
    lit = np.asarray(paper, np.float32) + shade - 5 + rng.normal(0, 2.0, (paper.height, paper.width))
    paper = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
    size = (460, 560) if number % 2 == 0 else (400, 420)
    table = wood(size, rng)
    turned = paper.convert("RGBA").rotate(float(rng.uniform(-1.5, 1.5)), Image.Resampling.BICUBIC, expand=True)
    place = ((size[0] - turned.width) // 2, (size[1] - turned.height) // 2)
    shadow = Image.new("L", size, 0)
    shadow.paste(150, (place[0] + 7, place[1] + 9), turned.getchannel("A"))
    table.paste((30, 20, 12), mask=shadow.filter(ImageFilter.GaussianBlur(7)))
    table.paste(turned.convert("RGB"), place, turned.getchannel("A"))
    warm = Image.merge("RGB", [Image.new("L", size, level) for level in (255, 250, 240)])
    questions = [("What is the total?", total), ("What is the date?", date)]
    questions += [
        (f"How much is the {name.lower()}?", amount(price)) for name, price in zip(bought, prices, strict=True)
    ]
    return Drawing(ImageChops.multiply(table, warm), tuple(questions))


def amount(pence: int) -> str:
    """Pounds and pence."""
    return f"{pence // 100}.{pence % 100:02}"


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


def form(number: int) -> Drawing:
    """The form of a club, with a frame around every value."""
    rng = np.random.default_rng((2, number))
    name = f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(1996, 2020))
    fields = {
        "Name": name,
        "Town": str(rng.choice(TOWNS)),
        "Member number": str(int(rng.integers(10_000, 100_000))),
        "Start date": f"{day:02}/{month:02}/{year}",
        "Fee": amount(5 * int(rng.integers(200, 1800))),
    }
    pitch = 76 if number % 2 == 0 else 56  # every second form is shorter
    image = Image.new("RGB", (440, 140 + 5 * pitch), (252, 252, 250))
    draw = ImageDraw.Draw(image)
    draw.text((30, 32), str(rng.choice(CLUBS)), font=sans(26, bold=True), fill=INK)
    draw.line((30, 76, 410, 76), fill=BLUE, width=3)
    for place, (label, value) in enumerate(fields.items()):
        top = 112 + pitch * place
        draw.text((30, top + 8), label, font=sans(18), fill=INK)
        draw.rectangle((190, top, 410, top + 40), outline=(150, 156, 164))
        draw.text((202, top + 8), value, font=sans(19), fill=INK)
    questions = [(f"What is the {label.lower()}?", value) for label, value in fields.items()]
    return Drawing(image, tuple(questions))


def chart(number: int) -> Drawing:
    """A bar chart with a title, an axis, grid lines and values."""
    rng = np.random.default_rng((3, number))
    first = int(rng.integers(0, len(MONTHS) - 3))
    months = MONTHS[first : first + 4]
    values = [int(value) for value in rng.choice(np.arange(15, 96, 4), len(months), replace=False)]
    most, least = months[int(np.argmax(values))], months[int(np.argmin(values))]
    size = (520, 400)
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = 68, 500, 76, 330

    def level(value: float) -> float:
        return bottom - (bottom - top) * value / 100

    title = f"Visitors to the {rng.choice(PLACES)}"
    draw.text((size[0] / 2, 18), title, font=ImageFont.load_default(26), fill=INK, anchor="ma")
    for value in range(0, 101, 25):
        draw.line((left, level(value), right, level(value)), fill=(226, 229, 233))
        draw.text((left - 9, level(value)), str(value), font=ImageFont.load_default(18), fill=PALE_INK, anchor="rm")
    pitch = (right - left) / len(months)
    for index, (month, value) in enumerate(zip(months, values, strict=True)):
        centre = left + pitch * (index + 0.5)
        box = (round(centre - 28), round(level(value)), round(centre + 28), bottom)
        draw.rectangle(box, fill=ORANGE if month == most else BLUE)
        draw.text((centre, level(value) - 5), str(value), font=ImageFont.load_default(19), fill=INK, anchor="mb")
        draw.text((centre, bottom + 9), month, font=ImageFont.load_default(19), fill=INK, anchor="ma")
    draw.line((left, bottom, right, bottom), fill=PALE_INK, width=2)
    questions = [("Which bar is the highest?", most), ("Which bar is the lowest?", least)]
    questions += [(f"What is the value of {month}?", str(value)) for month, value in zip(months, values, strict=True)]
    return Drawing(image, tuple(questions))


#: The kinds of drawings, by the names of their images.
DRAWINGS: dict[str, Callable[[int], Drawing]] = {"receipt": receipt, "form": form, "chart": chart}


def main() -> None:
    """Draw the images of this folder."""
    from foveate.shipped import examples

    for example in examples():
        drawing = DRAWINGS[example.name](example.number)
        drawing.image.save(FOLDER / f"{example.name}.png", optimize=True)


if __name__ == "__main__":
    main()
