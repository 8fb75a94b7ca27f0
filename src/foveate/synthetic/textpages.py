"""Pages filled with words, numbers and codes, for learning to read; and questions about words by their place."""

from __future__ import annotations

import random

from foveate.core.errors import FoveateError
from foveate.synthetic.augmentation import Colour, apart, colours, degrade, sheet
from foveate.synthetic.fonts import Face
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ORDINALS, ask, wordings
from foveate.synthetic.sample import Sample
from foveate.synthetic.words import Vocabulary

ONLY_WORD = wordings("page.only_word")
ONLY_NUMBER = wordings("page.only_number")
NTH_LINE = wordings("page.nth_line")
WORD_OF_LINE = wordings("page.word_of_line")
BESIDE = {way: wordings(f"page.beside.{way}") for way in ("right", "left", "below", "above")}
TRANSCRIBE = wordings("page.transcribe")


def any_string(words: Vocabulary, longest: int) -> str:
    """A word, number or code of at most `longest` characters in the case of a title, a sentence or a shout."""
    rng = words.rng
    longest = max(1, longest)
    kind = rng.random()
    if kind < 0.62 and longest >= 3:
        text = words.word(3, min(longest, 10))
        style = rng.random()
        return text.upper() if style < 0.3 else text.title() if style < 0.6 else text
    if kind < 0.72 or longest < 3:
        return words.digits(1, min(longest, 8))
    if kind < 0.8 and longest >= 6:
        return rng.choice(("", "", "$", "RM ")[: 4 if longest >= 9 else 3]) + words.amount(1, 90)
    if kind < 0.86 and longest >= 10:
        return rng.choice([words.date(), words.time()])[:longest].strip()
    return words.code(3, min(longest, 8))


def render_text_page(
    rng: random.Random,
    size: tuple[int, int],
    *,
    split: str = "train",
    difficulty: float = 1.0,
    caps: tuple[float, float] = (7.0, 28.0),
) -> Sample:
    """A page filled with text at mixed sizes, for pure reading.

    Args:
        rng: all randomness.
        size: width and height in pixels.
        split: "train" or "heldout": fonts and words of that split.
        difficulty: 0 plain black on white, 1 every paper, ink and defect.
        caps: smallest and largest height of capitals in pixels.

    The answer is the text in reading order, one space between words; the question asks to read it all. A page has
    one to three fonts and sizes. Fills what fits: a tiny page may hold a single character.
    """
    width, height = size
    if width < 16 or height < 16:
        raise FoveateError(f"a text page needs at least 16 x 16 pixels, got {width} x {height}.")
    if not 4 <= caps[0] <= caps[1]:
        raise FoveateError(f"caps must be (smallest, largest) with 4 <= smallest <= largest, got {caps}.")
    brief = RenderRequest(rng, split, width, height, difficulty)
    paper, ink = colours(rng, difficulty)
    page = Page(sheet(rng, width, height, paper, difficulty), apart(paper, ink))
    low, high = caps
    usual = low * (high / low) ** rng.random()  # pages lean to one size
    lines: list[str] = []
    y = rng.uniform(1, 4)
    fonts = [brief.font() for _ in range(rng.choice((1, 1, 2, 3)))]
    sizes = [usual, *(low * (high / low) ** rng.random() for _ in range(2))]
    while True:
        cap = rng.choice(sizes)
        cap = min(cap, (height - y) / 1.75 if not lines else cap, high)
        font = rng.choice(fonts)
        line = cap * rng.uniform(1.5, 2.2)
        if y + 1.45 * cap > height and lines:
            break
        if y + 1.3 * cap > height:
            cap = max(4.0, (height - y) / 1.5)
        if rng.random() < 0.06 and lines:  # a gap
            y += line * 0.7
            continue
        face = font.face(cap)
        baseline = round(y + cap * 1.2)
        text = _fill_line(brief, page, face, baseline, ink)
        if text:
            lines.append(text)
        elif not lines:
            sizes = [max(4.0, min(cap, high) * 0.6)]
            if cap <= 5:
                break
            continue
        y += line
    image, characters = degrade(rng, page.image, page.characters, difficulty, contrast=page.contrast)
    meta = {"split": split, "difficulty": difficulty, "lines": lines}
    question = ask(rng, split, TRANSCRIBE)
    return Sample(image, question, " ".join(lines), "text_page", characters, meta)


def _with_marks(rng: random.Random, text: str) -> str:
    """Some strings with the punctuation of documents: colons, commas, brackets, signs."""
    kind = rng.random()
    if kind > 0.2 or len(text) < 3:
        return text
    if kind > 0.06:
        return text[:-1] + rng.choice(":::,,..;!?%*")
    if kind > 0.03:
        return rng.choice("#$-*@+") + text[1:]
    return rng.choice(("()", "[]", '""', "''"))[0] + text[1:-1] + rng.choice(")]\"'/&=")


def _fill_line(brief: RenderRequest, page: Page, face: Face, baseline: int, ink: Colour) -> str:
    """Draw words from left to right until no more fits; returns what was drawn."""
    rng, width = brief.rng, page.image.width
    em = face.width("n")
    gap = face.advance(" ") * rng.uniform(1.0, 1.8) + 1
    x = rng.uniform(2, 2 + em)
    stop = width if rng.random() < 0.7 else width * rng.uniform(0.4, 1)
    words: list[str] = []
    while True:
        space = (stop - x - 2) / em
        if space < 1:
            break
        for shorter in range(4):  # wide letters may need a shorter string
            text = _with_marks(rng, any_string(brief.words, max(1, int(space) - shorter * 2)))
            if x + face.width(text) <= width - 2:
                break
        else:
            break
        kept = len(page.characters)
        try:
            end = page.text(x, baseline, text, face, ink)
        except DoesNotFit:
            if len(page.characters) > kept:
                # Part of the string is on the page: what was drawn is what there is to read.
                words.append("".join(c.char for c in page.characters[kept:]))
            break
        words.append(text)
        x = end + gap * (1 if rng.random() < 0.85 else rng.uniform(2, 5))
        if rng.random() < 0.04:
            break
    return " ".join(words)


def _sheet(brief: RenderRequest) -> tuple[Page, Colour]:
    paper, ink = colours(brief.rng, brief.difficulty)
    return Page(sheet(brief.rng, brief.width, brief.height, paper, brief.difficulty), apart(paper, ink)), ink


def read_word(brief: RenderRequest) -> tuple[Page, Drawn]:
    """One word, number or code somewhere on the sheet."""
    rng = brief.rng
    page, ink = _sheet(brief)
    longest = max(1, brief.upto(5, 10))
    number = rng.random() < 0.4
    if number:
        text = brief.words.digits(1, min(8, longest))
        if rng.random() < 0.4 and longest >= 3:
            text = brief.words.code(3, min(8, longest))
            while text.isalpha():
                text = brief.words.code(3, min(8, longest))
    else:
        text = any_string(brief.words, longest)
        while not text.isalpha():
            text = any_string(brief.words, max(3, longest))
    font = brief.font()
    fits = min((brief.width - 6) / font.width(text, 1.0), (brief.height - 4) / 1.6)
    low = min(fits, max(brief.least_cap, 0.2 * fits))
    if fits < brief.floor(min(6, brief.least_cap)):
        raise DoesNotFit(text)
    cap = rng.uniform(low, min(fits * 0.97, 70)) if low < min(fits * 0.97, 70) else low
    face = font.face(cap)
    slack = brief.width - face.width(text) - 4
    if slack < 0:
        raise DoesNotFit(text)
    x = 2 + slack * rng.random()
    y = rng.uniform(1.2 * cap, max(1.2 * cap, brief.height - 0.4 * cap))
    page.text(x, y, text, face, ink)
    return page, Drawn(ask(rng, brief.split, ONLY_NUMBER if number else ONLY_WORD), text, {"cap": cap})


def _lines(brief: RenderRequest, count: int, columns: int, straight: bool) -> tuple[Page, list[list[str]]]:
    """`count` lines of up to `columns` different strings, all on the page, or DoesNotFit."""
    rng = brief.rng
    page, ink = _sheet(brief)
    font = brief.font()
    longest = max(3, brief.upto(5, 9))
    used: set[str] = set()
    rows: list[list[str]] = []
    for _ in range(count):
        row = []
        for _ in range(columns if straight else rng.randint(1, columns)):
            text = any_string(brief.words, longest)
            while text.lower() in used or " " in text:
                text = any_string(brief.words, longest)
            used.add(text.lower())
            row.append(text)
        rows.append(row)
    gap = rng.uniform(0.8, 1.6)
    if straight:
        widths = [max(font.width(row[c], 1) for row in rows) + 2 * gap for c in range(columns)]
        widest = sum(widths)
    else:
        widest = max(sum(font.width(w, 1) + gap for w in row) for row in rows)
    leading = rng.uniform(1.7, 2.6)
    fits = min((brief.width - 8) / widest, (brief.height - 6) / (leading * count))
    if fits < brief.floor(min(12, brief.least_cap - 0.25 * brief.attempt)):
        raise DoesNotFit("lines")
    cap = min(fits, rng.uniform(brief.least_cap, 24))
    face = font.face(cap)
    left = 3 + rng.random() * max(0, brief.width - 8 - widest * cap)
    y = 2 + cap * 1.3 + rng.random() * max(0, brief.height - 6 - leading * count * cap)
    centred = not straight and rng.random() < 0.2
    for row in rows:
        if straight:
            x = left
            for word, step in zip(row, widths, strict=True):
                page.text(x, y, word, face, ink)
                x += step * cap
        else:
            wide = sum(face.width(w) + gap * cap for w in row) - gap * cap
            x = (brief.width - wide) / 2 if centred else left
            for word in row:
                x = page.text(x, y, word, face, ink) + gap * cap
        y += leading * cap
    return page, rows


def read_line(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The nth line of a few."""
    rng = brief.rng
    page, rows = _lines(brief, rng.randint(2, max(2, brief.upto(3, 8))), max(1, brief.upto(1, 3)), straight=False)
    questions = []
    for n in rng.sample(range(len(rows)), min(brief.most, len(rows))):
        nth = "last" if n == len(rows) - 1 and rng.random() < 0.5 else ORDINALS[n]
        wordings = [w for w in NTH_LINE if "{n}" not in w] if nth == "last" else NTH_LINE
        questions.append((ask(rng, brief.split, wordings, nth=nth, n=str(n + 1)), " ".join(rows[n])))
    return page, Drawn(*questions[0], {"lines": len(rows)}, tuple(questions[1:]))


def word_position(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The first or last word of a line, or the neighbour of a word in a grid of words."""
    rng = brief.rng
    count, columns = rng.randint(1, max(1, brief.upto(3, 6))), rng.randint(2, max(2, brief.upto(2, 4)))
    if rng.random() < 0.4:
        page, rows = _lines(brief, count, columns, straight=False)
        n = rng.randrange(len(rows))
        last = rng.random() < 0.5
        words = {
            "end": "last" if last else "first",
            "verb": "ends" if last else "begins",
            "nth": ORDINALS[n],
            "n": str(n + 1),
        }
        answer = rows[n][-1 if last else 0]
        return page, Drawn(ask(rng, brief.split, WORD_OF_LINE, **words), answer, {"lines": len(rows), "kind": "ends"})
    if brief.width < brief.height * 0.7:
        count, columns = max(2, count), 1 if brief.attempt > 4 else columns
    page, rows = _lines(brief, count, columns, straight=True)
    row, column = rng.randrange(count), rng.randrange(columns)
    ways = {"right": (0, 1), "left": (0, -1), "below": (1, 0), "above": (-1, 0)}
    possible = [w for w, (dy, dx) in ways.items() if 0 <= row + dy < count and 0 <= column + dx < columns]
    if not possible:
        raise DoesNotFit("a single word has no neighbour")
    way = rng.choice(possible)
    dy, dx = ways[way]
    word = rows[row][column]
    shown = f'"{word}"' if rng.random() < 0.3 else word
    return page, Drawn(ask(rng, brief.split, BESIDE[way], word=shown), rows[row + dy][column + dx], {"kind": way})


def transcribe(brief: RenderRequest) -> tuple[Page, Drawn]:
    """All text of a short page in reading order, lines joined by one space."""
    rng = brief.rng
    page, rows = _lines(brief, rng.randint(1, max(1, brief.upto(2, 5))), max(1, brief.upto(1, 3)), straight=False)
    return page, Drawn(
        ask(rng, brief.split, TRANSCRIBE), " ".join(w for row in rows for w in row), {"lines": len(rows)}
    )
