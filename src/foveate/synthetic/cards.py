"""Visiting cards, whose lines have no labels, and menus and price lists."""

from __future__ import annotations

from foveate.synthetic.augmentation import Colour, apart, colours, sheet
from foveate.synthetic.fonts import Face
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings
from foveate.synthetic.words import BUSINESS

LAYOUTS = {"train": ("left", "centre", "split"), "heldout": ("right", "band")}
MENU_LAYOUTS = {"train": ("dots", "right", "line"), "heldout": ("close", "first", "two_lines")}
_JOBS = [
    "Manager",
    "Engineer",
    "Director",
    "Designer",
    "Sales agent",
    "Accountant",
    "Architect",
    "Consultant",
    "Painter",
    "Dentist",
    "Lawyer",
    "Editor",
    "Teacher",
    "Plumber",
    "Secretary",
    "Photographer",
    "Technician",
    "Analyst",
    "Driver",
    "Chef",
]


def _open_sheet(brief: RenderRequest) -> tuple[Page, Colour, Colour]:
    paper, ink = colours(brief.rng, brief.difficulty)
    image = sheet(brief.rng, brief.width, brief.height, paper, brief.difficulty)
    return Page(image, apart(paper, ink)), paper, ink


def _company(brief: RenderRequest, longest: int) -> str:
    """A firm that nobody takes for a person: "Group", "Ltd" and the like belong to it."""
    for _ in range(60):
        name = brief.words.company(longest)
        if name.upper().endswith(BUSINESS):
            return name
    raise DoesNotFit("no short firm")


def read_card(brief: RenderRequest) -> tuple[Page, Drawn]:
    """A line of a visiting card by what it is: name, firm, job, telephone, e-mail, address."""
    rng, words = brief.rng, brief.words
    longest = max(9, round(brief.width / brief.least_cap / 0.95) - brief.attempt // 2)
    person = words.person(longest)
    host = words.word(4, 8)
    mailbox = person.split()[-1].lower()
    lines = {
        "name": person.upper() if rng.random() < 0.3 else person,
        "company": _company(brief, longest),
        "job": rng.choice([job for job in _JOBS if len(job) <= longest]),
        "phone": words.phone() if longest > 13 else words.digits(6, 7),
        "email": f"{mailbox}@{host}.{rng.choice(('com', 'org', 'net', 'my', 'de'))}",
        "address": words.street(),
    }
    kept = ["name", *rng.sample([k for k in lines if k != "name"], rng.randint(1, max(1, min(5, brief.upto(2, 6)))))]
    order = [k for k in lines if k in kept]
    if rng.random() < 0.3:
        order.insert(0, order.pop(rng.randrange(len(order))))
    marks = {"phone": rng.choice(("", "Tel. ", "T: ", "Phone: ")), "email": rng.choice(("", "", "E: ", "Mail: "))}
    texts = [marks.get(k, "") + lines[k] for k in order]
    sizes = [rng.choice((1.3, 1.5, 1.2)) if k == "name" else 1.0 for k in order]
    layout = rng.choice(LAYOUTS[brief.split])
    font, strong = brief.font(), brief.font()
    fonts = [strong if k in ("name", "company") else font for k in order]
    leading = rng.uniform(1.7, 2.4)
    widest = max(f.width(t, 1.05) * s for f, t, s in zip(fonts, texts, sizes, strict=True))
    height = sum(sizes) * leading + (1.0 if layout in ("split", "band") else 0)
    margin = rng.uniform(4, 5 + 0.04 * brief.width)
    fits = min((brief.width - 2 * margin) / widest, (brief.height - 2 * margin) / height)
    if fits < brief.floor(max(6.0, brief.least_cap * (1 - 0.02 * brief.attempt))):
        raise DoesNotFit("card")
    cap = min(fits, rng.uniform(brief.least_cap, 24))
    page, paper, ink = _open_sheet(brief)
    left = margin + rng.random() * (brief.width - 2 * margin - widest * cap)
    y = margin + rng.random() * max(0.0, brief.height - 2 * margin - height * cap)
    for i, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        face = fonts[i].face(cap * size)
        fill = ink
        if layout == "band" and i == 0:
            page.draw.rectangle((0, y, brief.width, y + size * leading * cap), fill=ink)
            fill = paper
        baseline = y + (size * leading * cap + size * cap) / 2
        if layout == "centre":
            page.text_centred(left + widest * cap / 2, baseline, text, face, fill)
        elif layout == "right":
            page.text_right(left + widest * cap, baseline, text, face, fill)
        else:
            page.text(left, baseline, text, face, fill)
        y += size * leading * cap
        if layout in ("split", "band") and i == 0:
            if layout == "split":
                page.draw.line((left, y + 0.5 * cap, left + widest * cap, y + 0.5 * cap), fill=ink)
            y += cap
    asked = rng.sample([k for k in order if k != "job"], min(3, len(order) - ("job" in order)))
    if "job" in order and rng.random() < 0.15:
        asked[0] = "job"
    questions = [(ask(rng, brief.split, wordings(f"card.{kind}")), lines[kind]) for kind in asked]
    meta = {"layout": layout, "cap": cap, "asked": asked[0]}
    return page, Drawn(*questions[0], meta, tuple(questions[1:]))


def _entries(brief: RenderRequest, count: int, longest: int) -> dict[str, str]:
    """Items with prices, all different, no name within another."""
    rng, words = brief.rng, brief.words
    unit = rng.choice(("", "", "", "$", "RM", "$"))
    entries: dict[str, str] = {}
    upper = rng.random() < 0.25
    while len(entries) < count:
        name = words.word(3, max(4, min(9, longest)))
        if longest > 12 and rng.random() < 0.4:
            name += " " + words.word(3, 7)
        name = name.upper() if upper else name.capitalize()
        price = unit + words.amount(0.8, 60)
        clash = any(name.lower() in other.lower() or other.lower() in name.lower() for other in entries)
        if not clash and price not in entries.values():
            entries[name] = price
    return entries


def _menu_line(
    page: Page,
    box: tuple[float, float],
    y: float,
    entry: tuple[str, str],
    face: Face,
    cap: float,
    ink: Colour,
    layout: str,
) -> None:
    (left, right), (name, price) = box, entry
    if layout == "first":
        page.text(left, y, f"{price}  {name}", face, ink)
        return
    if layout == "close":
        page.text(left, y, f"{name} - {price}", face, ink)
        return
    if layout == "two_lines":
        page.text(left, y, name, face, ink)
        page.text(left + 2 * cap, y + 1.6 * cap, price, face, ink)
        return
    end = page.text(left, y, name + " ", face, ink)
    begin = page.text_right(right, y, price, face, ink)
    if begin < end + cap:
        raise DoesNotFit("menu")
    if layout == "dots":
        page.text(end, y, "." * int((begin - end - 0.5 * cap) / face.width(".")), face, ink)
    elif layout == "line":
        page.draw.line((left, y + 0.6 * cap, right, y + 0.6 * cap), fill=ink)


def menu(brief: RenderRequest) -> tuple[Page, Drawn]:
    """A price of a menu or price list, what has a price, the cheapest and the dearest; the heading."""
    rng = brief.rng
    layout = rng.choice(MENU_LAYOUTS[brief.split])
    longest = max(4, round(brief.width / brief.least_cap / 0.95) - 8 - brief.attempt // 3)
    entries = _entries(brief, rng.randint(2, max(2, brief.upto(3, 9))), longest)
    title = ""
    if rng.random() < 0.5 and brief.attempt < 10:
        title = brief.words.word(4, 8).title() + rng.choice(("", " Cafe", " menu", " prices", " Bar"))
        title = title.upper() if rng.random() < 0.3 else title
    font = brief.font()
    leading = rng.uniform(1.9, 2.7) + (1.6 if layout == "two_lines" else 0)
    widest = max(font.width(f"{n}    {p}", 1.05) for n, p in entries.items())
    height = leading * len(entries) + (2.8 if title else 0)
    margin = rng.uniform(4, 5 + 0.04 * brief.width)
    widest = max(widest, font.width(title, 1.05))
    fits = min((brief.width - 2 * margin) / widest, (brief.height - 2 * margin) / height)
    if fits < brief.floor(max(6.0, brief.least_cap * (1 - 0.02 * brief.attempt))):
        raise DoesNotFit("menu")
    cap = min(fits, rng.uniform(brief.least_cap, 22))
    page, _, ink = _open_sheet(brief)
    wide = min(brief.width - 2 * margin, widest * cap * rng.uniform(1, 1.6))
    left = margin + rng.random() * (brief.width - 2 * margin - wide)
    y = margin + rng.random() * max(0.0, brief.height - 2 * margin - height * cap)
    if title:
        page.text_centred(left + wide / 2, y + 1.6 * cap, title, font.face(cap), ink)
        y += 2.8 * cap
    face = font.face(cap)
    for i, entry in enumerate(entries.items()):
        _menu_line(page, (left, left + wide), y + i * leading * cap + 1.35 * cap, entry, face, cap, ink, layout)
    meta = {"layout": layout, "cap": cap, "entries": len(entries)}
    amounts = {name: float(price.lstrip("$RM")) for name, price in entries.items()}
    names = rng.sample(list(entries), min(3, len(entries)))
    kind = rng.random()
    said = [n.lower() if rng.random() < 0.5 else n for n in names]
    prices = [
        (ask(rng, brief.split, wordings("menu.price"), item=s), entries[n]) for s, n in zip(said, names, strict=True)
    ]
    if title and kind > 0.9:
        first = (ask(rng, brief.split, wordings("menu.title")), title)
    elif kind > 0.75:
        low = rng.random() < 0.5
        found = (min if low else max)(amounts, key=lambda name: amounts[name])
        first = (ask(rng, brief.split, wordings("menu.cheapest" if low else "menu.dearest")), found)
    elif kind > 0.6:
        first = (ask(rng, brief.split, wordings("menu.item"), price=entries[names[0]]), names[0])
    else:
        return page, Drawn(*prices[0], meta, tuple(prices[1:]))
    return page, Drawn(*first, meta, tuple(prices[1:]))
