"""Forms, cards, labels and letters with labelled fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from foveate.synthetic.augmentation import Colour, apart, colours, sheet
from foveate.synthetic.fields import ASK, HELD_OUT, TRAIN, FieldKind, fill
from foveate.synthetic.fonts import Face
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings, yes_no
from foveate.synthetic.textpages import any_string

IS_IT = wordings("form.is_it")
IS_THERE = wordings("form.is_there")
APPEARS = wordings("form.appears")

LAYOUTS = {
    "train": ("colon", "columns", "leaders", "boxes", "stacked", "two_up", "ruled"),
    "heldout": ("right", "band", "dash", "equals"),
}


class Filled(NamedTuple):
    """One field of a form: its kind, printed label, value, and the noun in questions."""

    kind: FieldKind | None  # None: a label that is only a word
    label: str
    value: str
    name: str


def _fields(brief: RenderRequest, count: int, longest: int) -> list[Filled]:
    """Fields whose labels and names are all different, and whose values are too."""
    rng, words = brief.rng, brief.words
    pool = TRAIN if brief.split == "train" else HELD_OUT + tuple(rng.sample(TRAIN, 8))
    fields: list[Filled] = []
    taken: set[str] = set()
    for _ in range(200):
        if len(fields) == count:
            return fields
        if rng.random() < 0.25:
            kind, label = None, words.word(3, max(4, min(8, longest))).title()
            if rng.random() < 0.3:
                label = label.upper()
            name = label.lower() if rng.random() < 0.5 else label
            value = any_string(words, max(2, min(9, longest)))
        else:
            kind = rng.choice(pool)
            label = rng.choice(kind.labels)
            name, value = kind.name, fill(words, kind.values, longest)
        # "Date" inside "Due date" would leave a question with two answers.
        keys = {label.lower(), name.lower(), value.lower()}
        crossed = any(a in b or b in a for a in keys - {value.lower()} for b in taken)
        if crossed or value.lower() in taken or len(label) > longest + 4:
            continue
        taken |= keys
        fields.append(Filled(kind, label, value, name))
    raise DoesNotFit("not enough different fields")


def _mark(brief: RenderRequest, label: str) -> str:
    return label + brief.rng.choice((":", ":", ":", "", " :", "."))


def _heading(brief: RenderRequest, longest: int) -> str:
    rng = brief.rng
    text = rng.choice(
        ("Invoice", "Order form", "Delivery note", "Membership", "Registration", "Statement", "Application")
    )
    if brief.split == "heldout" or rng.random() < 0.4:
        text = brief.words.word(4, max(4, min(10, longest))).title() + rng.choice(("", " form", " card", " sheet"))
    return text.upper() if rng.random() < 0.4 else text


def _colon(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Label, colon and value on one line."""
    for field, y, face, bold in space.rows(fields):
        end = page.text(space.left, y, _mark(brief, field.label) + " ", bold, ink)
        page.text(end + space.gap, y, field.value, face, ink)


def _columns(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Labels in one column, values in another."""
    edge = space.left + max(space.bold.width(f.label + " :") for f in fields) + space.gap
    if brief.rng.random() < 0.3:
        edge = max(edge, space.left + 0.45 * (space.right - space.left))
    mark = brief.rng.choice((":", "", " :", ""))
    for field, y, face, bold in space.rows(fields):
        page.text(space.left, y, field.label + mark, bold, ink)
        page.text(edge, y, field.value, face, ink)


def _leaders(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Value at the right edge, dots or a line between."""
    line = brief.rng.random() < 0.3
    for field, y, face, bold in space.rows(fields):
        end = page.text(space.left, y, field.label + " ", bold, ink)
        begin = page.text_right(space.right, y, field.value, face, ink)
        if begin < end + face.width("  "):
            raise DoesNotFit("leaders")
        if line:
            page.draw.line((end, y, begin - face.width(" "), y), fill=ink)
        else:
            page.text(end, y, "." * max(0, int((begin - end - face.width(" ")) / face.width("."))), face, ink)


def _right(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Label at the left, value at the right edge, nothing between."""
    for field, y, face, bold in space.rows(fields):
        end = page.text(space.left, y, _mark(brief, field.label), bold, ink)
        if page.text_right(space.right, y, field.value, face, ink) < end + face.width("  "):
            raise DoesNotFit("right")


def _dash(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    for field, y, face, bold in space.rows(fields):
        end = page.text(space.left, y, field.label + " - ", bold, ink)
        page.text(end, y, field.value, face, ink)


def _equals(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    for field, y, face, bold in space.rows(fields):
        end = page.text(space.left, y, f"[{field.label}] ", bold, ink)
        page.text(end, y, field.value, face, ink)


def _ruled(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Value on a line to be written on."""
    for field, y, face, bold in space.rows(fields):
        end = page.text(space.left, y, _mark(brief, field.label) + " ", bold, ink)
        page.draw.line((end, y + 2, space.right, y + 2), fill=ink)
        page.text(end + space.gap, y, field.value, face, ink)


def _boxes(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Rows of a box with a rule between label and value."""
    edge = space.left + max(space.bold.width(f.label) for f in fields) + space.cap
    ys = list(space.rows(fields))
    below = 0.58 * (
        space.leading - space.cap
    )  # rules lie a little nearer to the next capitals than to these, for descenders
    top = ys[0][1] + below - space.leading
    for field, y, face, bold in ys:
        page.text(space.left, y, field.label, bold, ink)
        page.text(edge, y, field.value, face, ink)
    left, right, bottom = space.left - 3, space.right + 1, ys[-1][1] + below
    for y in [top, *(y + below for _, y, _, _ in ys)]:
        page.draw.line((left, y, right, y), fill=ink)
    for x in (left, edge - 0.5 * space.cap, right):
        page.draw.line((x, top, x, bottom), fill=ink)


def _stacked(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Label above its value."""
    indent = brief.rng.choice((0, 0, space.cap))
    for field, y, face, bold in space.rows(fields, two_lines=True):
        page.text(space.left, y - space.cap * 1.7, _mark(brief, field.label), bold, ink)
        page.text(space.left + indent, y, field.value, face, ink)


def _band(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Label light on a dark band, value beneath."""
    paper = tuple(page.image.crop((0, 0, 1, 1)).tobytes())
    for field, y, face, bold in space.rows(fields, two_lines=True):
        page.draw.rectangle((space.left - 3, y - space.cap * 3.2, space.right, y - space.cap * 1.4), fill=ink)
        page.text(space.left, y - space.cap * 1.8, field.label, bold, paper)
        page.text(space.left, y, field.value, face, ink)


def _two_up(brief: RenderRequest, page: Page, fields: list[Filled], ink: Colour, space: FieldArea) -> None:
    """Two fields side by side, each label above its value."""
    middle = (space.left + space.right) / 2 + space.gap
    pairs = [fields[i : i + 2] for i in range(0, len(fields), 2)]
    for pair, (_, y, face, bold) in zip(pairs, space.rows([p[0] for p in pairs], two_lines=True), strict=True):
        for field, x, stop in zip(pair, (space.left, middle), (middle - space.gap, space.right), strict=False):
            if x + max(bold.width(field.label + ":"), face.width(field.value)) > stop:
                raise DoesNotFit("two columns")
            page.text(x, y - space.cap * 1.7, field.label + ":", bold, ink)
            page.text(x, y, field.value, face, ink)


class FieldArea:
    """Area of the fields: edges, cap height, faces and line spacing."""

    def __init__(self, left: float, right: float, top: float, cap: float, leading: float, face: Face, bold: Face):
        self.left, self.right, self.top = left, right, top
        self.cap, self.leading, self.face, self.bold = cap, leading, face, bold
        self.gap = face.width(" ")

    def rows(self, fields: list[Filled], two_lines: bool = False) -> list[tuple[Filled, float, Face, Face]]:
        """Every field with its baseline, the face of its value and of its label."""
        step = self.leading + (2.1 * self.cap if two_lines else 0)
        first = self.top + self.cap * (3.4 if two_lines else 1.4)
        return [(field, first + i * step, self.face, self.bold) for i, field in enumerate(fields)]


_DRAW: dict[str, Callable[[RenderRequest, Page, list[Filled], Colour, FieldArea], None]] = {
    "colon": _colon,
    "columns": _columns,
    "leaders": _leaders,
    "boxes": _boxes,
    "stacked": _stacked,
    "two_up": _two_up,
    "ruled": _ruled,
    "right": _right,
    "band": _band,
    "dash": _dash,
    "equals": _equals,
}


def _form(brief: RenderRequest) -> tuple[Page, list[Filled], dict[str, object]]:
    """A filled-in form on a page."""
    rng = brief.rng
    layout = rng.choice(LAYOUTS[brief.split])
    two_lines = layout in ("stacked", "band", "two_up")
    narrow = brief.width / brief.least_cap  # width in cap heights
    longest = max(3, min(22, round(narrow / (1.1 if two_lines else 2.1)) - brief.attempt // 3))
    count = rng.randint(1, max(1, brief.upto(2, 9)))
    fields = _fields(brief, count, longest)
    font = brief.font()
    label_font = font if rng.random() < 0.6 else brief.font()
    widths = [(label_font.width(f.label + " :", 1), font.width(f.value, 1)) for f in fields]
    if layout == "two_up":
        widest = 2.3 * max(max(w) for w in widths)
        lines = (len(fields) + 1) // 2
    elif two_lines:
        widest = max(max(w) for w in widths) + 1.2
        lines = len(fields)
    else:
        widest = max(w[0] for w in widths) + max(w[1] for w in widths) + 2.5
        lines = len(fields)
    leading = rng.uniform(2.1 if layout == "boxes" else 1.8, 2.8)
    heading = _heading(brief, longest) if rng.random() < 0.35 and brief.attempt < 6 else ""
    step = (leading + 2.1 if two_lines else leading) * lines + 1 + (2.6 if heading else 0)
    margin = rng.uniform(3, 4 + 0.03 * brief.width)
    fits = min((brief.width - 2 * margin) / (widest * 1.06), (brief.height - 2 * margin) / step)
    if fits < brief.floor(brief.least_cap * max(0.6, 1 - 0.02 * brief.attempt)):
        raise DoesNotFit("form")
    cap = min(fits, rng.uniform(brief.least_cap, 26))
    face, bold = font.face(cap), label_font.face(cap)
    paper, ink = colours(rng, brief.difficulty)
    page = Page(sheet(rng, brief.width, brief.height, paper, brief.difficulty), apart(paper, ink))
    spare_x, spare_y = brief.width - 2 * margin - widest * cap * 1.05, brief.height - 2 * margin - step * cap
    left = margin + max(0, spare_x) * rng.random() * 0.6
    top = margin + max(0, spare_y) * rng.random()
    right = min(brief.width - margin, left + widest * cap * 1.05 + max(0, spare_x) * rng.random())
    if heading:
        head = font.face(min(cap * rng.uniform(1, 1.4), (right - left) / font.width(heading, 1.05)))
        page.text(left, top + 1.5 * cap, heading, head, ink)
        top += 2.6 * cap
    _DRAW[layout](brief, page, fields, ink, FieldArea(left, right, top, cap, leading * cap, face, bold))
    return page, fields, {"layout": layout, "fields": len(fields), "cap": cap, "heading": heading}


def _shown(brief: RenderRequest, label: str) -> str:
    return f'"{label}"' if brief.rng.random() < 0.3 else label


def read_field(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The value of one field."""
    page, fields, meta = _form(brief)
    first, *others = brief.rng.sample(fields, min(brief.most, len(fields)))
    more = tuple((_question(brief, fields, field), field.value) for field in others)
    return page, Drawn(_question(brief, fields, first), first.value, {**meta, "label": first.label}, more)


def _question(brief: RenderRequest, fields: list[Filled], field: Filled) -> str:
    """A question for one field of a form."""
    rng = brief.rng
    kind = field.kind
    alone = kind is not None and sum(f.kind is not None and f.kind.values == kind.values for f in fields) == 1
    if kind is not None and kind.special and alone and rng.random() < 0.2 and all(f.kind for f in fields):
        return ask(rng, brief.split, kind.special)
    name = field.name if rng.random() < 0.8 else field.label
    return ask(rng, brief.split, ASK, name=name, label=_shown(brief, field.label))


def document_yes_no(brief: RenderRequest) -> tuple[Page, Drawn]:
    """Whether a field has a value, whether a field is there, whether a word appears: yes or no."""
    rng = brief.rng
    truth = rng.random() < 0.5
    page, fields, meta = _form(brief)
    field = rng.choice(fields)
    kind = rng.random()
    if kind < 0.5:
        value = field.value
        if not truth:
            others = [f.value for f in fields if f is not field]
            if others and rng.random() < 0.5:
                value = rng.choice(others)
            else:
                while value.lower() == field.value.lower():
                    value = fill(brief.words, field.kind.values, 14) if field.kind else any_string(brief.words, 8)
        question = ask(rng, brief.split, IS_IT, name=field.name, label=field.label, value=value)
        return page, Drawn(question, yes_no(truth), {**meta, "kind": "value"})
    printed = " ".join([str(meta["heading"]), *(f"{f.label} {f.name} {f.value}" for f in fields)]).lower()
    if kind < 0.75:
        label = field.label if truth else ""
        while not truth and (not label or label.lower() in printed):
            other = rng.choice(TRAIN if brief.split == "train" else HELD_OUT)
            label = rng.choice(other.labels) if rng.random() < 0.6 else brief.words.word(3, 8).title()
            if any(label.lower() == each.lower() for f in fields if f.kind for each in f.kind.labels):
                label = ""
        return page, Drawn(
            ask(rng, brief.split, IS_THERE, label=_shown(brief, label)), yes_no(truth), {**meta, "kind": "field"}
        )
    word = rng.choice(field.value.split()) if truth else ""
    while not truth and (not word or word.lower() in printed):
        word = any_string(brief.words, 8)
    return page, Drawn(
        ask(rng, brief.split, APPEARS, word=_shown(brief, word)), yes_no(truth), {**meta, "kind": "appears"}
    )
