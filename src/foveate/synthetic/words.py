"""Words, names, numbers, codes, dates and amounts to print, in two disjoint halves.

Whether a string belongs to the train or the held-out split is decided by its checksum, so the halves need no lists,
hold for invented words and codes as well, and never overlap. Closed vocabularies (months, units, "LTD", colours) and
numbers of one or two digits are shared: they are too few to be divided.
"""

from __future__ import annotations

import random
import zlib
from functools import lru_cache
from pathlib import Path

SPLITS = ("train", "heldout")
_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br bl ch cl cr dr fl fr gl gr kn pl pr qu sc sh sk sl sm sn sp st str sw th"
    " tr tw"
)
_VOWELS = "a e i o u ai au ea ee ei ia ie io oa oo ou ue y"
_CODAS = "b ck d f g l ll m n nd ng nk nt p r rd rk rm rn rt s sk ss st t th x ct lt mp pt sh ch"
_ONSET_LIST, _VOWEL_LIST, _CODA_LIST = _ONSETS.split(), _VOWELS.split(), _CODAS.split()
# No I, O, Q: in many fonts they are drawn like 1, 0 and O, and a code has no context that tells.
_CODE_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # pragma: allowlist secret
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
BUSINESS = (
    "SDN BHD",
    "ENTERPRISE",
    "TRADING",
    "LTD",
    "INC",
    "CO.",
    "MART",
    "STORE",
    "RESTAURANT",
    "CAFE",
    "BAKERY",
    "HARDWARE",
    "SUPPLIES",
    "MARKET",
    "SHOP",
    "& SONS",
    "GROUP",
    "(M) SDN BHD",
    "ELECTRONICS",
    "BOOKS",
    "FASHION",
    "MOTORS",
    "PHARMACY",
    "STATIONERY",
    "FOODS",
    "LLC",
    "GMBH",
    "HOLDINGS",
    "SERVICES",
)
_STREETS = ["Street", "Road", "Avenue", "Lane", "Drive", "Way", "Square", "Court", "Close", "Hill"]


def split_of(text: str) -> str:
    """The split that may print `text` (case does not matter): one string in five is held out."""
    return "heldout" if zlib.crc32(text.lower().encode()) % 5 == 0 else "train"


@lru_cache(maxsize=2)
def dictionary(split: str) -> dict[int, tuple[str, ...]]:
    """Common English words, goods, first names, surnames and towns of one split, by length."""
    by_length: dict[int, list[str]] = {}
    for word in Path(__file__).with_name("words.txt").read_text(encoding="ascii").split():
        if split_of(word) == split:
            by_length.setdefault(len(word), []).append(word)
    return {length: tuple(words) for length, words in sorted(by_length.items())}


class Vocabulary:
    """Draws strings of one split. Lengths are in characters, both ends included."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.split = split

    def _keep(self, draw) -> str:
        for _ in range(400):
            text = draw()
            if len(text) < 3 or split_of(text) == self.split:
                return text
        raise RuntimeError(f"no string of the {self.split} split among 400 drawn: {text!r} is the last")

    def known(self, shortest: int = 3, longest: int = 10) -> str:
        """A word of the dictionary."""
        lists = [words for length, words in dictionary(self.split).items() if shortest <= length <= longest]
        return self.rng.choice(self.rng.choice(lists)) if lists else self.invented(shortest, longest)

    def invented(self, shortest: int = 3, longest: int = 9) -> str:
        """A word that can be pronounced and exists in no dictionary we know of."""

        def draw() -> str:
            rng = self.rng
            length = rng.randint(shortest, longest)
            text = ""
            while len(text) < length:
                text += rng.choice(_ONSET_LIST) + rng.choice(_VOWEL_LIST)
                if rng.random() < 0.5:
                    text += rng.choice(_CODA_LIST)
            return text[:length]

        return self._keep(draw)

    def word(self, shortest: int = 3, longest: int = 9) -> str:
        """A word of the dictionary or an invented one."""
        return self.known(shortest, longest) if self.rng.random() < 0.6 else self.invented(shortest, longest)

    def words(self, count: int, shortest: int = 3, longest: int = 8) -> list[str]:
        """`count` different words."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.word(shortest, longest)] = None
        return list(found)

    def digits(self, shortest: int = 1, longest: int = 8) -> str:
        """Digits without a leading zero."""

        def draw() -> str:
            length = self.rng.randint(shortest, longest)
            return str(self.rng.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1))

        return self._keep(draw)

    def code(self, shortest: int = 3, longest: int = 8) -> str:
        """Letters and digits as on invoices, number plates and labels."""

        def draw() -> str:
            rng = self.rng
            length = rng.randint(shortest, longest)
            kind = rng.random()
            if kind < 0.3:
                text = "".join(rng.choice(_CODE_LETTERS + "0123456789") for _ in range(length))
            else:
                letters = rng.randint(1, max(1, min(3, length - 1)))
                text = "".join(rng.choice(_CODE_LETTERS) for _ in range(letters))
                text += "-" if kind > 0.65 and length - letters > 2 else ""
                text += "".join(rng.choice("0123456789") for _ in range(length - len(text)))
                if rng.random() < 0.12:
                    text = text.lower() if "-" in text else f"{text[letters:]}{text[:letters]}"
            return text

        return self._keep(draw)

    def amount(self, low: float = 0.5, high: float = 500.0) -> str:
        """Digits with two decimals, small amounts likelier."""
        return self._keep(lambda: f"{low * (high / low) ** self.rng.random():.2f}")

    def date(self) -> str:
        """A date of 1990-2035 in one of many notations."""

        def draw() -> str:
            rng = self.rng
            day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2035)
            name = _MONTHS[month - 1]
            kind = rng.randrange(10)
            if kind <= 4:
                mark = rng.choice("/--.") if kind else "/"
                years = f"{year % 100:02d}" if rng.random() < 0.2 else f"{year}"
                if kind == 4:
                    return f"{year}{mark}{month:02d}{mark}{day:02d}"
                if kind == 3 and day > 12:
                    return f"{month:02d}{mark}{day:02d}{mark}{years}"
                return f"{day:02d}{mark}{month:02d}{mark}{years}"
            if kind == 5:
                return f"{day} {name} {year}"
            if kind == 6:
                return f"{name} {day}, {year}"
            if kind == 7:
                return f"{day:02d} {name[:3]} {year}"
            if kind == 8:
                return f"{day:02d}-{name[:3].upper()}-{year}"
            return f"{name[:3]} {day}, {year}"

        return self._keep(draw)

    def time(self) -> str:
        """A time of day."""
        hour, minute = self.rng.randint(0, 23), self.rng.randint(0, 59)
        if self.rng.random() < 0.3:
            return f"{hour % 12 or 12}:{minute:02d} {'AM' if hour < 12 else 'PM'}"
        return f"{hour:02d}:{minute:02d}" + (f":{self.rng.randint(0, 59):02d}" if self.rng.random() < 0.3 else "")

    def person(self, longest: int = 18) -> str:
        """First name and surname, or one of them."""
        first, last = self.known(3, 7).title(), self.known(3, 8).title()
        full = f"{first[0]}. {last}" if self.rng.random() < 0.2 else f"{first} {last}"
        return full if len(full) <= longest else last

    def company(self, longest: int = 30) -> str:
        """A firm's name."""
        rng = self.rng
        words = [self.word(3, 9) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        name = " ".join(words).title() + " "
        if rng.random() < 0.8:
            end = rng.choice(BUSINESS)
            name += end if rng.random() < 0.5 else end.title().replace("'S", "'s")
        while len(name.strip()) > longest and len(words) > 1:
            words.pop()
            name = " ".join(words).title()
        return name.strip() if len(name.strip()) <= longest else words[0].title()

    def town(self) -> str:
        """A town."""
        return self.word(4, 9).title()

    def street(self) -> str:
        """A street with a number."""
        rng = self.rng
        number, name = rng.randint(1, 299), self.word(4, 9).title()
        kind = rng.randrange(5)
        if kind == 0:
            return f"{number} {name} {rng.choice(_STREETS)}"
        if kind == 1:
            return f"No. {number}, Jalan {name}" + (
                f" {rng.randint(1, 30)}/{rng.randint(1, 60)}" if rng.random() < 0.5 else ""
            )
        if kind == 2:
            return f"{name}str. {number}"
        if kind == 3:
            return f"Lot {number}, Taman {name}"
        return f"{number}, {name} {rng.choice(_STREETS)[:2]}."

    def address(self, lines: int = 2, longest: int = 40) -> list[str]:
        """Street, then town with a post code, over one to three lines of up to `longest` characters (12 or more)."""
        rng = self.rng
        for _ in range(40):
            code = self.digits(5, 5)
            last = f"{code} {self.town()}" if rng.random() < 0.7 else f"{self.town()} {code}"
            if lines == 1:
                address = [f"{self.street()}, {last}"]
            else:
                area = rng.choice(("Taman", "Bandar", "Block", "Level 2", "Unit 7", "Old", "New", "Upper", "Kampung"))
                middle = [f"{area} {self.town()}" + rng.choice((",", ""))] if lines > 2 else []
                address = [self.street() + rng.choice((",", "")), *middle, last]
            if max(map(len, address)) <= longest:
                return address
        return [f"{rng.randint(1, 99)} {self.word(4, 8).title()}", f"{self.digits(3, 4)} {self.word(4, 6).title()}"]

    def phone(self) -> str:
        """A telephone number."""
        rng = self.rng
        return rng.choice(("03-{}", "+60 {}", "({}) {}", "0{}-{}", "{} {}")).format(
            self.digits(3, 4), self.digits(4, 6)
        )
