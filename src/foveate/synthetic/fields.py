"""Fields of forms, invoices, labels and cards: labels, questions and values."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.synthetic.questions import wordings
from foveate.synthetic.words import Vocabulary


@dataclass(frozen=True)
class FieldKind:
    """One kind of field.

    name: noun in a question. labels: how it may be printed. values: method that fills it in. special: questions
    that do not name it, used only when no other field of the page has the same `values`.
    """

    name: str
    labels: tuple[str, ...]
    values: str
    special: tuple[str, ...] = ()


def _field(name: str, labels: str, values: str, special: str = "") -> FieldKind:
    return FieldKind(name, tuple(labels.split("|")), values, tuple(special.split("|")) if special else ())


TRAIN = (
    _field("invoice number", "Invoice No|Invoice Number|Invoice #|Inv No|Invoice no.|INVOICE NO", "code"),
    _field("order number", "Order No|Order Number|Order #|Order|ORDER NO.", "code"),
    _field("account number", "Account No|Account Number|Acct No|A/C No|Account", "number"),
    _field("customer number", "Customer No|Customer ID|Cust No|Client No|Customer number", "number"),
    _field(
        "date", "Date|DATE|Date of issue|Dated", "date", "When was it issued?|When is this dated?|What date is on it?"
    ),
    _field("due date", "Due Date|Due|Payment due|Pay by", "date", "When is it due?|When must it be paid?"),
    _field("name", "Name|NAME|Full name", "person", "Who is named here?|Whose document is this?|Who is it?"),
    _field(
        "customer name",
        "Customer|Customer name|Client|Bill to|Sold to",
        "person",
        "Who is the customer?|Who is it billed to?",
    ),
    _field("company", "Company|Firm|Supplier|Vendor|Employer", "company", "Which company is named?|What firm is it?"),
    _field(
        "total",
        "Total|TOTAL|Amount due|Total due|Grand total",
        "amount",
        "How much is it?|How much has to be paid?|What is the amount due?",
    ),
    _field("tax", "Tax|VAT|GST|Sales tax", "amount", "How much tax is there?|How much is the tax?"),
    _field("subtotal", "Subtotal|Sub-total|Net amount|Net", "amount", "How much is it before tax?"),
    _field("city", "City|Town|CITY|Place", "town", "Which city is named?|In which town is it?"),
    _field("street", "Street|Address|Street address|ADDRESS", "street", "Where is it?|In which street is it?"),
    _field("postcode", "Postcode|ZIP|Post code|Postal code|ZIP code", "postcode"),
    _field("phone number", "Phone|Tel|Telephone|Phone no|TEL", "phone", "Which number should I call?"),
    _field("quantity", "Quantity|Qty|QTY|Pieces|Units", "small", "How many are there?|How many pieces?"),
    _field("weight", "Weight|Net weight|Wt|WEIGHT", "weight", "How heavy is it?|How much does it weigh?"),
    _field("price", "Price|Unit price|PRICE|Cost", "amount", "How much does it cost?|What does it cost?"),
    _field("item", "Item|Product|Article|Description|ITEM", "thing", "What was ordered?|Which product is it?"),
    _field("serial number", "Serial No|Serial number|S/N|SERIAL|Ser. No", "code"),
    _field("model", "Model|Type|MODEL|Model no", "code", "Which model is it?"),
    _field("room", "Room|Room no|ROOM|Room number", "small", "Which room is it?"),
    _field("table", "Table|Table no|TABLE", "small", "Which table is it?"),
    _field("seat", "Seat|SEAT|Seat no", "short_code", "Where do I sit?|Which seat is it?"),
    _field("gate", "Gate|GATE|Gate no", "short_code", "Which gate is it?"),
    _field("flight", "Flight|FLIGHT|Flight no", "short_code", "Which flight is it?"),
    _field("time", "Time|TIME|Start time|Departure", "time", "At what time is it?|When does it start?"),
    _field("age", "Age|AGE", "small", "How old?"),
    _field("cashier", "Cashier|Served by|Staff|Operator", "first_name", "Who served the customer?"),
    _field("reference", "Reference|Ref|Ref No|Your ref|REF.", "code"),
    _field("status", "Status|STATUS|State", "thing", "What is its state?"),
    _field("password", "Password|Passcode|PIN|Key", "code"),
    _field("department", "Department|Dept|Section|Division", "thing", "Which department is it?"),
    _field("code", "Code|CODE|Item code|Code no", "code"),
)
HELD_OUT = (
    _field("permit number", "Permit No|Permit|PERMIT", "code"),
    _field("policy number", "Policy No|Policy|Policy number", "number"),
    _field("patient", "Patient|Patient name", "person", "Who is the patient?"),
    _field("destination", "Destination|To|DESTINATION", "town", "Where does it go?"),
    _field("deposit", "Deposit|Deposit paid", "amount", "How much was deposited?"),
    _field("expiry date", "Expiry|Expires|Valid until", "date", "When does it expire?"),
    _field("locker", "Locker|Locker no", "small", "Which locker is it?"),
    _field("batch", "Batch|Lot No|BATCH", "code", "Which batch is it?"),
    _field("author", "Author|Written by", "person", "Who wrote it?"),
    _field("brand", "Brand|Make|BRAND", "thing", "Which brand is it?"),
    _field("balance", "Balance|BALANCE", "amount", "How much is left?"),
    _field("licence plate", "Plate|Reg No|Licence plate", "code"),
)

ASK = wordings("form.ask")


def fill(words: Vocabulary, values: str, longest: int) -> str:
    """A value of at most about `longest` characters for a field whose `values` is one of the kinds above."""
    rng = words.rng
    if values == "code":
        return (
            words.code(3, max(3, min(9, longest))) if rng.random() < 0.75 else words.digits(3, max(3, min(8, longest)))
        )
    if values == "number":
        return words.digits(3, max(3, min(9, longest)))
    if values == "short_code":
        return words.code(2, 4)
    if values == "date":
        for _ in range(20):
            date = words.date()
            if len(date) <= max(8, longest):
                return date
        return date
    if values == "person":
        return words.person(max(8, longest))
    if values == "first_name":
        name = words.known(3, max(3, min(8, longest)))
        return name.title() if rng.random() < 0.6 else name.upper()
    if values == "company":
        return words.company(max(9, longest))
    if values == "amount":
        amount = words.amount(0.5, 9.9 if longest < 5 else 999)
        unit = rng.random()
        if longest < 8 or unit < 0.6:
            return amount
        return f"${amount}" if unit < 0.75 else f"{rng.choice(('RM ', 'EUR ', 'USD ', 'RM', '$ '))}{amount}"
    if values == "town":
        return words.word(3, max(4, min(10, longest))).title()
    if values == "street":
        return words.street() if longest >= 14 else words.word(4, max(4, longest)).title()
    if values == "postcode":
        return words.digits(4, 6)
    if values == "phone":
        return words.phone() if longest >= 12 else words.digits(5, 7)
    if values == "small":
        return words.digits(1, 3)
    if values == "weight":
        return f"{words.digits(1, 3)}{rng.choice((' kg', 'kg', ' g', 'g', ' lb'))}"
    if values == "time":
        return words.time() if longest >= 9 else f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if values == "thing":
        word = words.word(3, max(3, min(10, longest)))
        style = rng.random()
        return word.title() if style < 0.5 else word.upper() if style < 0.7 else word
    raise ValueError(f"unknown kind of value {values!r}")
