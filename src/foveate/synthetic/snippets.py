"""What people draw to try a model: lines of plain text, one below the other, and little else.

Receipts of a few lines, forms, lists and signs as a dozen lines of a drawing library make them: one font, one or two
sizes, a plain ground, text from the left edge on. They are asked everything that their lines say.
"""

from __future__ import annotations

from typing import NamedTuple

from foveate.synthetic.augmentation import Colour, apart, colours, sheet
from foveate.synthetic.documents import APPEARS, IS_IT
from foveate.synthetic.fields import ASK, HELD_OUT, TRAIN, fill
from foveate.synthetic.fonts import Face
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ORDINALS, ask, wordings, yes_no
from foveate.synthetic.receipts import AMOUNT_OF, COMPANY, DATE, TOTAL
from foveate.synthetic.textpages import NTH_LINE, any_string
from foveate.synthetic.words import split_of

TOTALS = ("TOTAL", "Total", "TOTAL:", "Total:", "Total due", "Grand total", "Amount due", "SUM", "TOTAL DUE", "To pay")
GREETINGS = ("Thank you!", "THANK YOU", "Thanks!", "Have a nice day", "Please come again", "Goodbye")
TITLES = ("Form", "Registration", "Membership card", "Visitor", "Invoice", "Ticket", "Order", "Profile", "ID card")
LIST_TITLES = ("Menu", "Price list", "MENU", "Prices", "To buy", "Stock", "Shopping list", "Scores")
PRICE = wordings("snippet.price")


class Line(NamedTuple):
    """One line: the text at the left, the text that belongs to it, and how the two are joined."""

    left: str
    right: str = ""
    scale: float = 1.0


class Question(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def _amount(brief: RenderRequest, greatest: float) -> str:
    return brief.words.amount(0.5, greatest)


def _name(brief: RenderRequest, longest: int) -> str:
    word = brief.words.word(3, max(3, min(10, longest)))
    style = brief.rng.random()
    return word.title() if style < 0.6 else word.upper() if style < 0.85 else word


def _sum_of(amounts: list[str]) -> str:
    cents = sum(round(float(amount) * 100) for amount in amounts)
    return f"{cents // 100}.{cents % 100:02d}"


def _receipt(brief: RenderRequest, longest: int) -> tuple[list[Line], list[Question]]:
    rng, split = brief.rng, brief.split
    lines: list[Line] = []
    asked: list[Question] = []
    unit = rng.choice(("", "", "", "$"))
    if rng.random() < 0.8 and brief.attempt < 30:
        company = brief.words.company(longest) if rng.random() < 0.5 else _name(brief, longest)
        company = company.upper() if rng.random() < 0.5 else company
        if len(company) > longest:
            raise DoesNotFit("company")
        lines.append(Line(company, scale=rng.choice((1.0, 1.0, 1.3))))
        asked.append(Question(ask(rng, split, COMPANY), company))
    if rng.random() < 0.5 and longest >= 10 and brief.attempt < 20:
        date = brief.words.date()
        lines.append(Line(rng.choice(("", "Date: ", "DATE: ", "Date ")) + date))
        asked.append(Question(ask(rng, split, DATE), date))
    names: list[str] = []
    count = rng.randint(1, brief.upto(3, 6))
    for _ in range(60):
        name = _name(brief, longest - 7)
        if len(names) < count and all(name.lower() not in n.lower() and n.lower() not in name.lower() for n in names):
            names.append(name)
    for _ in range(400):
        amounts = [_amount(brief, 30) for _ in names]
        total = _sum_of(amounts)
        if split_of(total) == split:
            break
    else:
        raise DoesNotFit("no sum in the split")
    for name, amount in zip(names, amounts, strict=True):
        lines.append(Line(name, unit + amount))
        said = name if rng.random() < 0.6 else name.lower()
        asked.append(Question(ask(rng, split, AMOUNT_OF, item=said), unit + amount))
    if (len(names) > 1 or rng.random() < 0.8) and brief.attempt < 30:
        lines.append(Line(rng.choice(TOTALS), unit + total, rng.choice((1.0, 1.0, 1.25))))
        asked += [Question(ask(rng, split, TOTAL), unit + total)] * 2
    if rng.random() < 0.25 and brief.attempt < 10:
        lines.append(Line(rng.choice(GREETINGS)))
    return lines, asked


def _form(brief: RenderRequest, longest: int) -> tuple[list[Line], list[Question]]:
    rng, words, split = brief.rng, brief.words, brief.split
    lines: list[Line] = []
    asked: list[Question] = []
    if rng.random() < 0.35 and brief.attempt < 10:
        title = rng.choice(TITLES) if rng.random() < 0.5 else _name(brief, longest)
        lines.append(Line(title.upper() if rng.random() < 0.4 else title, scale=rng.choice((1.0, 1.2, 1.4))))
    pool = TRAIN if split == "train" else HELD_OUT + tuple(rng.sample(TRAIN, 8))
    taken: set[str] = set()
    count = rng.randint(1, brief.upto(4, 7))
    for _ in range(40):
        if count == 0:
            break
        if rng.random() < 0.3:
            label = words.word(3, 8).title()
            name, values, value = label.lower(), "thing", any_string(words, 8)
        else:
            kind = rng.choice(pool)
            label, name, values = rng.choice(kind.labels), kind.name, kind.values
            value = fill(words, values, max(4, longest - len(label) - 2))
        keys = {label.lower(), name.lower()}
        if len(label) + len(value) + 2 > longest + 3:
            continue
        if any(a in b or b in a for a in keys for b in taken) or value.lower() in {a.answer.lower() for a in asked}:
            continue
        taken |= keys
        count -= 1
        lines.append(Line(label, value))
        asked.append(Question(ask(rng, split, ASK, name=name if rng.random() < 0.8 else label, label=label), value))
        if rng.random() < 0.3:
            truth = rng.random() < 0.5
            shown = value if truth else fill(words, values, 10)
            if truth or shown.lower() != value.lower():
                question = ask(rng, split, IS_IT, name=name, label=label, value=shown)
                asked.append(Question(question, yes_no(truth)))
    return lines, asked


def _list(brief: RenderRequest, longest: int) -> tuple[list[Line], list[Question]]:
    """Things with a number each: prices, stock, points."""
    rng, split = brief.rng, brief.split
    lines = (
        [Line(rng.choice(LIST_TITLES), scale=rng.choice((1.0, 1.3)))]
        if rng.random() < 0.5 and brief.attempt < 10
        else []
    )
    asked: list[Question] = []
    prices = rng.random() < 0.6
    unit = rng.choice(("", "$")) if prices else ""
    for _ in range(rng.randint(min(2, brief.upto(4, 8)), brief.upto(4, 8))):
        name = _name(brief, longest - 6)
        value = unit + (_amount(brief, 50) if prices else brief.words.digits(1, 3))
        if any(name.lower() in line.left.lower() or line.left.lower() in name.lower() for line in lines):
            continue
        lines.append(Line(name, value))
        said = name if rng.random() < 0.6 else name.lower()
        ways = (AMOUNT_OF + PRICE) if prices else ASK
        asked.append(Question(ask(rng, split, ways, item=said, name=said, label=name), value))
    return lines, asked


def _words(brief: RenderRequest, longest: int) -> tuple[list[Line], list[Question]]:
    """Lines of unrelated words."""
    rng, split = brief.rng, brief.split
    lines: list[Line] = []
    for _ in range(rng.randint(1, brief.upto(3, 6))):
        text = any_string(brief.words, longest)
        while len(text) + 5 < longest and rng.random() < 0.4:
            text += " " + any_string(brief.words, longest - len(text) - 1)
        lines.append(Line(text))
    asked = []
    for n, line in enumerate(lines):
        nth = "last" if n == len(lines) - 1 and n and rng.random() < 0.4 else ORDINALS[n]
        ways = [w for w in NTH_LINE if "{n}" not in w] if nth == "last" else NTH_LINE
        asked.append(Question(ask(rng, split, ways, nth=nth, n=str(n + 1)), line.left))
    return lines, asked


_KINDS = {"receipt": (_receipt, 5), "form": (_form, 5), "list": (_list, 3), "words": (_words, 2)}


def _appears(brief: RenderRequest, lines: list[Line]) -> Question:
    """Whether a word is there."""
    rng = brief.rng
    printed = [word for line in lines for word in f"{line.left} {line.right}".split() if len(word) >= 3]
    truth = bool(printed) and rng.random() < 0.5
    word = rng.choice(printed).strip(":,.") if truth else any_string(brief.words, 8)
    if not truth and any(word.lower() in each.lower() for each in printed):
        raise DoesNotFit("it is there")
    shown = f'"{word}"' if rng.random() < 0.3 else word
    return Question(ask(rng, brief.split, APPEARS, word=shown), yes_no(truth))


class _Style(NamedTuple):
    """How lines are set: between the two parts stands `mark`, `join` says where the second one begins."""

    join: str
    mark: str

    def width(self, line: Line, face: Face) -> float:
        text = f"{line.left}{self.mark} {line.right}" if line.right else line.left
        return face.width(text) + (1.5 * face.width("m") if self.join != "after" and line.right else 0)


def _set_line(page: Page, line: Line, style: _Style, face: Face, box: tuple[float, float, float], ink: Colour) -> None:
    left, right, y = box
    if not line.right:
        page.text(left, y, line.left, face, ink)
        return
    end = page.text(left, y, line.left + style.mark, face, ink)
    if style.join == "after":
        page.text(end + face.width(" "), y, line.right, face, ink)
        return
    begin = right if style.join == "column" else right - face.width(line.right)
    if begin < end + face.width(" "):
        raise DoesNotFit("two parts in one line")
    page.text(begin, y, line.right, face, ink)
    dots = int((begin - end - 2 * face.width(" ")) / face.width(".")) if style.join == "dots" else 0
    if dots > 1:
        page.text(end + face.width(" "), y, "." * dots, face, ink)


def snippet(brief: RenderRequest) -> tuple[Page, Drawn]:
    """A few lines of plain text: a receipt, a form, a list, or just words; questions about what they say."""
    rng = brief.rng
    kind = rng.choices(list(_KINDS), [weight for _, weight in _KINDS.values()])[0]
    font = brief.font("mono" if rng.random() < 0.2 else None)
    margin = rng.uniform(4, 8 + 0.06 * brief.width)
    least = brief.least_cap
    longest = int((brief.width - 2 * margin) / font.width("n", least)) - brief.attempt // 6
    if longest < 6:
        margin, longest = 4, max(6, longest)
    lines, asked = _KINDS[kind][0](brief, longest)
    if not asked:
        raise DoesNotFit("nothing to ask")
    joins = ("after", "after", "right", "dots", "column") if kind != "form" else ("after", "after", "after", "column")
    style = _Style(
        rng.choice(joins), rng.choice((":", ":", ":", "", " -")) if kind == "form" else rng.choice(("", "", ":"))
    )
    leading = rng.uniform(1.6, 3.0) if brief.attempt < 10 else 1.65
    high = leading * sum(line.scale for line in lines)
    unit = font.face(64)
    parts = [line for line in lines if line.right]
    column = max((unit.width(f"{line.left}{style.mark}  ") for line in parts), default=0) / 64
    widest = max(style.width(line, unit) * line.scale for line in lines) / 64
    if style.join == "column":
        widest = max(widest, column + max((unit.width(line.right) for line in parts), default=0) / 64)
    size = min((brief.width - 2 * margin) / (widest * 1.03), (brief.height - 2 * margin) / high / font.cap_ratio)
    fits = size * font.cap_ratio
    if fits < brief.floor(max(6.0, least * (1 - 0.02 * brief.attempt))):
        raise DoesNotFit("snippet")
    cap = min(fits, least * (2.2 ** (rng.random() ** 1.5)))
    paper, ink = colours(rng, brief.difficulty * (0.8 if rng.random() < 0.5 else 0))
    page = Page(sheet(rng, brief.width, brief.height, paper, brief.difficulty * 0.7), apart(paper, ink))
    if rng.random() < 0.12:
        page.draw.rectangle((2, 2, brief.width - 3, brief.height - 3), outline=ink, width=rng.choice((1, 2)))
    spare_x = brief.width - 2 * margin - widest * cap / font.cap_ratio
    spare_y = brief.height - 2 * margin - high * cap
    left = margin + max(0, spare_x) * (0 if rng.random() < 0.6 else rng.random())
    y = margin + max(0, spare_y) * (0 if rng.random() < 0.5 else rng.random())
    right = (
        left
        + widest * cap / font.cap_ratio
        + max(0, brief.width - margin - left - widest * cap / font.cap_ratio)
        * (0 if rng.random() < 0.5 else rng.random())
    )
    for line in lines:
        face = font.face(cap * line.scale)
        y += leading * cap * line.scale
        edge = left + column * cap / font.cap_ratio if style.join == "column" else right
        box = (left, edge, round(y - (leading - 1) * cap * line.scale / 2))
        _set_line(page, line, style, face, box, ink)
    if brief.most > 1 and rng.random() < 0.3:
        asked.append(_appears(brief, lines))
    first = rng.choice([one for one in asked if one.answer not in ("yes", "no")])
    others = rng.sample(asked, len(asked))
    more = tuple(dict.fromkeys((a.question, a.answer) for a in others if a.question != first.question))
    meta = {"kind": kind, "cap": cap, "lines": len(lines)}
    return page, Drawn(first.question, first.answer, meta, more[: brief.most - 1])
