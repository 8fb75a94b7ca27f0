"""Shop receipts as a till prints them: head, particulars, items, sums, thanks."""

from __future__ import annotations

from dataclasses import dataclass, field

from foveate.synthetic.augmentation import Colour, apart, colours, sheet, thermal
from foveate.synthetic.fonts import Font
from foveate.synthetic.page import DoesNotFit, Drawn, Page, RenderRequest
from foveate.synthetic.questions import ask, wordings
from foveate.synthetic.words import split_of

LAYOUTS = {
    # How items are printed, how the particulars are.
    "train": (("pair", "under", "columns", "coded"), ("lines", "pairs", "bare")),
    "heldout": (("priced_first", "numbered"), ("stacked", "ends")),
}
TITLES = (
    "TAX INVOICE",
    "RECEIPT",
    "CASH BILL",
    "INVOICE",
    "SALES RECEIPT",
    "CASH SALE",
    "OFFICIAL RECEIPT",
    "SIMPLIFIED TAX INVOICE",
)
THANKS = (
    "THANK YOU",
    "Thank you, please come again",
    "GOODS SOLD ARE NOT RETURNABLE",
    "Please keep this receipt",
    "HAVE A NICE DAY",
    "THANK YOU FOR SHOPPING WITH US",
    "No exchange, no refund",
    "See you again",
    "Customer copy",
    "VISIT US AGAIN",
)


@dataclass
class Row:
    """One printed row: at the left, in the middle and at the right; or a rule, a bar code, a gap.

    `scale` is its size against the others; `cells` are texts ending (or, negative, beginning) at a fraction of
    the width.
    """

    left: str = ""
    right: str = ""
    centre: str = ""
    scale: float = 1.0
    bold: bool = False
    special: str = ""  # "rule", "dashes", "bars", "gap"
    cells: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Item:
    """One sold article; `unit` is its price in cents."""

    name: str
    count: int
    unit: int
    code: str
    printed: str = ""  # `amount` as it stands on the receipt

    @property
    def amount(self) -> int:
        """Price of all of them in cents."""
        return self.count * self.unit


@dataclass
class Receipt:
    """What is printed, and what may be asked: (kind, answer) next to the particulars every receipt has."""

    company: list[str]
    address: list[str]
    date: str
    total: str
    items: list[Item]
    details: dict[str, str]
    rows: list[Row]


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _items(brief: RenderRequest, taxed: float) -> tuple[list[Item], int, int]:
    """Items, tax and total in cents; every amount that may be asked for belongs to the split."""
    rng, words = brief.rng, brief.words
    count = rng.randint(1, brief.upto(2, 7))
    longest = max(4, min(8, round(brief.width / _least_cap(brief) / 2.2)))
    names: list[str] = []
    while len(names) < count:
        name = words.word(3, longest)
        if rng.random() < 0.5 * brief.difficulty and longest == 8 and brief.attempt < 15:
            name += " " + (words.word(3, 8) if rng.random() < 0.7 else words.code(2, 4))
        name = name.upper() if rng.random() < 0.6 else name.title()
        if all(name.lower() not in other.lower() and other.lower() not in name.lower() for other in names):
            names.append(name)
    for _ in range(400):
        items = []
        for name in names:
            many = rng.randint(2, 9) if rng.random() < 0.25 else 1
            while True:
                unit = round(float(words.amount(0.4, 60)) * 100)
                if split_of(_money(unit * many)) == brief.split:
                    break
            items.append(Item(name, many, unit, words.digits(4, 8)))
        net = sum(item.amount for item in items)
        tax = round(net * taxed)
        if (split_of(_money(net + tax)) == brief.split and split_of(_money(tax)) == brief.split) or (
            not taxed and split_of(_money(net)) == brief.split
        ):
            return items, tax, net + tax
    raise DoesNotFit("no sum in the split")


def _head(brief: RenderRequest, receipt: Receipt) -> list[Row]:
    rng, words = brief.rng, brief.words
    big = rng.choice((1.0, 1.0, 1.25, 1.5))
    middle = rng.random() < 0.75
    bold = rng.random() < 0.6

    def row(text: str, scale: float = 1.0, bold: bool = False) -> Row:
        return Row(centre=text, scale=scale, bold=bold) if middle else Row(left=text, scale=scale, bold=bold)

    rows = [row(text, big, bold) for text in receipt.company]
    if rng.random() < 0.4 * brief.difficulty and brief.attempt < 20:
        rows.append(row(f"({words.digits(5, 7)}-{rng.choice('AHKMPTUVWX')})"))
    rows += [row(text) for text in receipt.address]
    if rng.random() < 0.5 * brief.difficulty and brief.attempt < 20:
        rows.append(row(f"{rng.choice(('TEL', 'Tel', 'Tel.', 'Phone'))}: {words.phone()}"))
    if rng.random() < 0.4 * brief.difficulty and brief.attempt < 20:
        rows.append(row(f"{rng.choice(('GST ID', 'GST NO', 'VAT NO', 'TAX ID'))}: {words.digits(8, 8)}"))
    if rng.random() < 0.2 + 0.4 * brief.difficulty and brief.attempt < 20:
        rows.append(Row(special=rng.choice(("gap", "rule", "dashes"))))
        rows.append(Row(centre=rng.choice(TITLES), bold=rng.random() < 0.5))
    return rows


def _particulars(brief: RenderRequest, receipt: Receipt, how: str) -> list[Row]:
    rng, words = brief.rng, brief.words
    mark = rng.choice((":", " :", ": ", ""))
    date = (rng.choice(("Date", "DATE", "Date", "Bill date", "Invoice date")), receipt.date)
    if rng.random() < 0.5 * brief.difficulty:
        date = (date[0], f"{receipt.date} {words.time()}")
    others: list[tuple[str, str]] = []
    if rng.random() < 0.3 + 0.5 * brief.difficulty and brief.attempt < 12:
        number = words.code(5, 10) if rng.random() < 0.5 else words.digits(4, 8)
        receipt.details["number"] = number
        others.append(
            (
                rng.choice(
                    ("Invoice No", "Receipt No", "Bill No", "INV NO", "Doc No", "Receipt #", "Invoice #", "No.")
                ),
                number,
            )
        )
    if rng.random() < 0.5 * brief.difficulty and brief.attempt < 8:
        who = words.known(3, 8)
        receipt.details["cashier"] = who.upper() if rng.random() < 0.5 else who.title()
        others.append(
            (rng.choice(("Cashier", "CASHIER", "Served by", "Operator", "Staff")), receipt.details["cashier"])
        )
    if rng.random() < 0.2 * brief.difficulty and brief.attempt < 8:
        others.append((rng.choice(("Table", "Counter", "POS", "Terminal", "Till")), words.digits(1, 2)))
    entries = [date, *others]
    rng.shuffle(entries)
    if how == "bare":
        return [Row(left=f"{k}{mark} {v}" if k != date[0] else v) for k, v in entries]
    if how == "pairs" and len(entries) > 1:
        (a, b), (c, d) = entries[:2]
        return [
            Row(left=f"{a}{mark} {b}", right=f"{c}{mark} {d}"),
            *(Row(left=f"{k}{mark} {v}") for k, v in entries[2:]),
        ]
    if how == "stacked":
        return [row for k, v in entries for row in (Row(left=k), Row(left=v))]
    if how == "ends":
        return [Row(left=k + mark.strip(), right=v) for k, v in entries]
    if rng.random() < 0.4:
        edge = -0.32 - 0.1 * rng.random()
        return [Row(left=k, cells=[(f": {v}", edge)]) for k, v in entries]
    return [Row(left=f"{k}{mark} {v}") for k, v in entries]


def _goods(brief: RenderRequest, receipt: Receipt, how: str, unit: str) -> list[Row]:
    rng = brief.rng
    rows: list[Row] = []
    if how == "columns":
        names = rng.choice(
            (
                ("Item", "Qty", "Amount"),
                ("DESCRIPTION", "QTY", "TOTAL"),
                ("Description", "Qty", "Amt"),
                ("ITEM", "QTY", "RM"),
            )
        )
        rows = [
            Row(left=names[0], right=names[2], cells=[(names[1], 0.68)], bold=True),
            Row(special=rng.choice(("rule", "dashes"))),
        ]
        for item in receipt.items:
            item.printed = _money(item.amount)
            rows.append(Row(left=item.name, right=item.printed, cells=[(str(item.count), 0.68)]))
        return rows
    tail = rng.choice(("", "", " SR", " S", " *"))
    for n, item in enumerate(receipt.items, 1):
        price = f"{unit}{_money(item.amount)}"
        item.printed = price.split()[-1]  # a currency belongs to it only where no space parts them
        several = f"{item.count} {rng.choice('xX')} {_money(item.unit)}"
        if how == "under":
            rows += [Row(left=item.name), Row(left="  " + several, right=price + tail)]
        elif how == "coded":
            rows += (
                [Row(left=item.code + "  " + item.name)]
                if rng.random() < 0.5
                else [Row(left=item.name), Row(left=item.code)]
            )
            rows += [Row(left="", cells=[(several, 0.62)], right=price + tail)]
        elif how == "priced_first":
            rows.append(Row(left=f"{price}  {item.name}" + (f" x{item.count}" if item.count > 1 else "")))
        elif how == "numbered":
            rows.append(Row(left=f"{n}) {item.name}" + (f" ({several})" if item.count > 1 else ""), right=price))
        else:
            rows.append(Row(left=(f"{item.count} " if item.count > 1 or tail else "") + item.name, right=price))
    return rows


def _sums(brief: RenderRequest, receipt: Receipt, tax: int, total: int, unit: str) -> list[Row]:
    rng = brief.rng
    scale = rng.choice((1.0, 1.0, 1.2, 1.4))
    in_label = " (RM)" if not unit and rng.random() < 0.2 else ""
    rows: list[Row] = []

    def row(label: str, cents: int, scale: float = 1.0, bold: bool = False, unit: str = unit) -> Row:
        return Row(left=label, right=f"{unit}{_money(cents)}", scale=scale, bold=bold)

    extra = 0.6 * brief.difficulty if brief.attempt < 20 else 0
    if tax or rng.random() < extra:
        rows.append(row(rng.choice(("Subtotal", "SUB TOTAL", "Sub-total", "Total excl. tax", "Net")), total - tax))
    if tax:
        rows.append(row(rng.choice(("GST 6%", "Tax", "VAT", "GST", "Service tax", "Sales tax")), tax))
        receipt.details["tax"] = _money(tax)
    if rng.random() < 0.25 * brief.difficulty:
        rows.append(row(rng.choice(("Rounding", "Rounding adj", "Discount")), 0))
    names = (
        "Total",
        "TOTAL",
        "Grand Total",
        "TOTAL DUE",
        "Total Amount",
        "Amount due",
        "TOTAL PAYABLE",
        "NETT TOTAL",
        "Round d Total",
        "Total incl. tax",
    )
    rows.append(
        row(
            rng.choice(names[:8] if brief.difficulty < 0.5 else names) + in_label + rng.choice(("", ":", " :")),
            total,
            scale,
            rng.random() < 0.6,
        )
    )
    receipt.total = f"{unit.strip() if not unit.endswith(' ') else ''}{_money(total)}"
    if rng.random() < 0.7 * brief.difficulty and brief.attempt < 10:
        paid = max(total, -(-total // 500) * 500 if rng.random() < 0.7 else total)
        rows += [
            row(rng.choice(("CASH", "Cash", "Paid", "Tendered")), paid),
            row(rng.choice(("CHANGE", "Change", "Change due")), paid - total),
        ]
        receipt.details["paid"], receipt.details["change"] = _money(paid), _money(paid - total)
    return rows


def _least_cap(brief: RenderRequest) -> float:
    """Receipts are set smaller than anything else."""
    return brief.floor(10 - 1.5 * brief.difficulty)


def _receipt(brief: RenderRequest) -> Receipt:
    rng, words = brief.rng, brief.words
    goods, particulars = (rng.choice(kinds) for kinds in LAYOUTS[brief.split])
    longest = max(12, round(brief.width / _least_cap(brief) / 0.9) - brief.attempt // 4)  # characters in a row
    company = words.company(min(34, longest))
    if rng.random() < 0.65:
        company = company.upper()
    parts = company.split()
    lines = [company]
    if len(company) > 16 and rng.random() < 0.3:
        half = len(parts) // 2
        lines = [" ".join(parts[:half]), " ".join(parts[half:])]
    address = words.address(rng.choice((2, 2, 3)) if brief.attempt < 15 else 2, longest)
    if rng.random() < 0.6:
        address = [line.upper() for line in address]
    tax_rate = (
        rng.choice((0, 0, 0.06, 0.1, 0.2)) if rng.random() < 0.3 + 0.5 * brief.difficulty and brief.attempt < 30 else 0
    )
    items, tax, total = _items(brief, tax_rate)
    unit = rng.choice(("", "", "", "$", "RM", "RM ", "$ "))
    unit_of_items = unit if rng.random() < 0.3 else ""
    receipt = Receipt(lines, address, words.date(), "", items, {}, [])
    rule = rng.choice(("rule", "dashes", "gap", "gap")) if brief.attempt < 20 else "gap"
    receipt.rows = _head(brief, receipt)
    blocks = [_particulars(brief, receipt, particulars), _goods(brief, receipt, goods, unit_of_items)]
    for block in [*blocks, _sums(brief, receipt, tax, total, unit)]:
        receipt.rows += [Row(special=rule), *block]
    if rng.random() < 0.6 * brief.difficulty and brief.attempt < 10:
        receipt.rows.append(Row(special="gap"))
        receipt.rows += [Row(centre=text) for text in rng.sample(THANKS, rng.randint(1, 2))]
    if rng.random() < 0.15 * brief.difficulty and brief.attempt < 10:
        receipt.rows.insert(rng.choice((len(receipt.rows), len(lines) + len(address))), Row(special="bars"))
    return receipt


_HEIGHTS = {"rule": 0.5, "dashes": 0.7, "gap": 0.5, "bars": 3.0}


def _print(brief: RenderRequest, receipt: Receipt) -> tuple[Page, dict[str, object]]:
    """The receipt on a page."""
    rng = brief.rng
    font = brief.font("mono" if rng.random() < 0.6 else None)
    strong = font if rng.random() < 0.5 else _strong(brief, font)
    leading = rng.uniform(1.55, 2.2)
    widest = max(_width(row, strong if row.bold else font) for row in receipt.rows)
    height = sum(_HEIGHTS.get(row.special, 1.0) * row.scale for row in receipt.rows) * leading
    margin = rng.uniform(3, 4 + 0.04 * brief.width)
    fits = min((brief.width - 2 * margin) / widest, (brief.height - 2 * margin) / height)
    least = _least_cap(brief)
    if fits < brief.floor(max(6.0, least * (1 - 0.01 * brief.attempt))):
        raise DoesNotFit("receipt")
    cap = min(fits, rng.uniform(least, 20))
    paper, ink = colours(rng, brief.difficulty * (0.7 if rng.random() < 0.5 else 0), dark=False)
    page = Page(sheet(rng, brief.width, brief.height, paper, brief.difficulty), contrast=apart(paper, ink))
    wide = min(brief.width - 2 * margin, widest * cap * rng.uniform(1.0, 1.4))
    left = margin + (brief.width - 2 * margin - wide) * rng.random()
    y = margin + rng.random() * max(0, brief.height - 2 * margin - height * cap)
    for row in receipt.rows:
        step = _HEIGHTS.get(row.special, 1.0) * row.scale * leading * cap
        _draw_row(page, row, strong if row.bold else font, cap, left, left + wide, y, step, ink, rng.random())
        y += step
    if rng.random() < 0.5 * brief.difficulty:
        page.image.paste(thermal(rng, page.image))
    return page, {"cap": cap, "items": len(receipt.items), "rows": len(receipt.rows)}


def _strong(brief: RenderRequest, font: Font) -> Font:
    for _ in range(20):
        other = brief.font()
        if other.bold:
            return other
    return font


def _width(row: Row, font: Font) -> float:
    """Least width of a row in cap heights of the page."""
    text = f"{row.left}   {row.right}" if row.right else row.left or row.centre
    need = font.width(text, 1.04)
    for cell, at in row.cells:
        if at < 0:
            need = max(need, font.width(row.left + " ", 1.04) / -at, font.width(cell, 1.04) / (1 + at))
        else:
            need = max(
                need, font.width(f"{row.left}  {cell}", 1.04) / at, font.width(f"  {row.right}", 1.04) / (1 - at)
            )
    return need * row.scale


def _draw_row(
    page: Page,
    row: Row,
    font: Font,
    cap: float,
    left: float,
    right: float,
    y: float,
    step: float,
    ink: Colour,
    chance: float,
) -> None:
    middle = y + step / 2
    if row.special == "rule":
        page.draw.line((left, middle, right, middle), fill=ink, width=1 + (chance < 0.2))
        return
    face = font.face(cap * row.scale)
    baseline = middle + cap * row.scale / 2
    if row.special == "dashes":
        mark = "-" if chance < 0.6 else "=" if chance < 0.8 else "*"
        page.text(left, baseline, mark * int((right - left) / face.width(mark)), face, ink)
        return
    if row.special == "bars":
        x, state = round(left + 0.15 * (right - left)), int(chance * 2**30) | 1
        while x < right - 0.15 * (right - left):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            wide = 1 + (state >> 16) % 3
            page.draw.rectangle((x, y + 0.2 * step, x + wide - 1, y + 0.8 * step), fill=ink)
            x += wide + 1 + (state >> 20) % 3
        return
    end = page.text(left, baseline, row.left, face, ink) if row.left else left
    if row.centre:
        page.text_centred((left + right) / 2, baseline, row.centre, face, ink)
    for cell, at in row.cells:
        if at < 0:
            end = page.text(left - at * (right - left), baseline, cell, face, ink)
        else:
            end = page.text_right(left + at * (right - left), baseline, cell, face, ink) + face.width(cell)
    if row.right and page.text_right(right, baseline, row.right, face, ink) < end + 0.5 * cap:
        raise DoesNotFit("row")


COMPANY = wordings("receipt.company")
DATE = wordings("receipt.date")
TOTAL = wordings("receipt.total")
ADDRESS = wordings("receipt.address")
AMOUNT_OF = wordings("receipt.amount_of")
AMOUNT_OF_SEVERAL = wordings("receipt.amount_of_several")
COUNT_OF = wordings("receipt.count_of")
DETAILS = {way: wordings(f"receipt.details.{way}") for way in ("number", "cashier", "tax", "paid", "change")}


def _main_field(brief: RenderRequest, asked: str) -> tuple[Page, Drawn]:
    """A receipt and a question for one of its four main fields; others, and details, are asked for too."""
    receipt = _receipt(brief)
    page, meta = _print(brief, receipt)
    rng, split = brief.rng, brief.split
    answers = {
        "company": (COMPANY, " ".join(receipt.company)),
        "date": (DATE, receipt.date),
        "total": (TOTAL, receipt.total),
        "address": (ADDRESS, " ".join(receipt.address)),
    }
    wordings, answer = answers.pop(asked)
    question = ask(rng, split, wordings)
    fields = rng.sample(list(answers.values()), min(2, brief.most - 1))
    more = [(ask(rng, split, w), a) for w, a in fields]
    for _ in range(brief.most - 3):
        further, reply, _ = _detail(brief, receipt, rng.choice(receipt.items))
        if further not in [q for q, _ in more]:
            more.append((further, reply))
    return page, Drawn(question, answer, meta, tuple(more))


def receipt_company(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The firm at the head of the receipt."""
    return _main_field(brief, "company")


def receipt_date(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The date as printed, without the time."""
    return _main_field(brief, "date")


def receipt_total(brief: RenderRequest) -> tuple[Page, Drawn]:
    """What had to be paid, as printed; a currency only where no space parts it from the digits."""
    return _main_field(brief, "total")


def receipt_address(brief: RenderRequest) -> tuple[Page, Drawn]:
    """The address, lines joined by one space."""
    return _main_field(brief, "address")


def receipt_detail(brief: RenderRequest) -> tuple[Page, Drawn]:
    """What an item cost or how many there were; the number, the cashier, the tax, the change."""
    receipt = _receipt(brief)
    page, meta = _print(brief, receipt)
    question, answer, kind = _detail(brief, receipt, brief.rng.choice(receipt.items))
    return page, Drawn(question, answer, {**meta, "kind": kind})


def _detail(brief: RenderRequest, receipt: Receipt, item: Item) -> tuple[str, str, str]:
    """A question for an item or for another detail, its answer, and of which kind it is."""
    rng = brief.rng
    options = [(AMOUNT_OF if item.count == 1 else AMOUNT_OF_SEVERAL, item.printed, "amount")]
    if item.count > 1:
        options.append((COUNT_OF, str(item.count), "count"))
    possible = [k for k, v in receipt.details.items() if len(v) < 3 or split_of(v) == brief.split]
    if possible:
        kind = rng.choice(possible)
        options += [(DETAILS[kind], receipt.details[kind], kind)] * 2
    wordings, answer, kind = rng.choice(options)
    name = item.name if rng.random() < 0.7 else item.name.lower()
    return ask(rng, brief.split, wordings, item=name), answer, kind
