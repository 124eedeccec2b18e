"""Numbers, dates, times, money, letters and cards as spoken words.

Every filler takes the random generator and returns `(spoken, written)`: what a synthesiser should be given, and the
words that the transcript shall hold. The two differ where a voice would misread the words (the letter a).
"""

# ruff: noqa: SIM905 (lists of words read best as a line of words)
from __future__ import annotations

import random
from collections.abc import Callable

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINAL_ENDS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
MONTHS = ("january february march april may june july august september october november december").split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
SEASONS = "spring summer autumn fall winter".split()
NATO = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey x-ray yankee zulu"
).split()
RANKS = [*ONES[2:11], "jack", "queen", "king", "ace"]
SUITS = "clubs diamonds hearts spades".split()

Filled = tuple[str, str]


def cardinal(n: int, and_: bool = False) -> str:
    """The words of a whole number; with `and_`, British style ("two hundred and five")."""
    if n < 0:
        return "minus " + cardinal(-n, and_)
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f" {ONES[n % 10]}" if n % 10 else "")
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            head, rest = divmod(n, size)
            words = f"{cardinal(head, and_)} {name}"
            if rest:
                words += (" and " if and_ and rest < 100 else " ") + cardinal(rest, and_)
            return words
    raise AssertionError(n)


def ordinal(n: int) -> str:
    """The words of an ordinal number: 21 -> "twenty first"."""
    head, _, last = cardinal(n).rpartition(" ")
    if last in ORDINAL_ENDS:
        last = ORDINAL_ENDS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return f"{head} {last}".strip()


def year(n: int) -> str:
    """A year as it is read aloud: 1999 -> "nineteen ninety nine", 2005 -> "two thousand five"."""
    high, low = divmod(n, 100)
    if (high == 20 and low < 10) or (low == 0 and high % 10 == 0):
        return cardinal(n)
    if low == 0:
        return f"{cardinal(high)} hundred"
    return f"{cardinal(high)} {'oh ' if low < 10 else ''}{cardinal(low)}"


def digits(r: random.Random, count: int) -> str:
    """`count` digits, one by one; zero is sometimes "oh"."""
    zero = "oh" if r.random() < 0.25 else "zero"
    return " ".join(zero if d == 0 else ONES[d] for d in (r.randrange(10) for _ in range(count)))


def digits_of(number: str) -> str:
    """The digits of a written number, one by one."""
    return " ".join(ONES[int(d)] for d in number)


def any_number(r: random.Random) -> int:
    """Small numbers often, larger ones less and less."""
    return r.choice((r.randint(0, 20), r.randint(0, 20), r.randint(20, 99), r.randint(20, 99), r.randint(100, 999)))


def clock(r: random.Random) -> str:
    """A time of day in one of the usual forms."""
    hour, minute = cardinal(r.randint(1, 12)), r.randrange(60)
    half = r.choice(("", "", " a m", " p m", " in the morning", " in the afternoon", " in the evening"))
    if minute == 0:
        return hour + (half or r.choice((" o'clock", "")))
    return f"{hour} {'oh ' if minute < 10 else ''}{cardinal(minute)}{half}"


def date(r: random.Random) -> str:
    """A date, with or without the day of the week and the year."""
    day, month = ordinal(r.randint(1, 31)), r.choice(MONTHS)
    text = r.choice((f"{month} {day}", f"{month} {day}", f"the {day} of {month}"))
    if r.random() < 0.35:
        text = f"{r.choice(WEEKDAYS)} {text}"
    if r.random() < 0.35:
        text = f"{text} {year(r.randint(1900, 2029))}"
    return text


def money(r: random.Random) -> str:
    """An amount in dollars, cents, pounds or euros."""
    unit, small = r.choice((("dollars", "cents"), ("dollars", "cents"), ("pounds", "pence"), ("euros", "cents")))
    whole = r.choice((r.randint(2, 20), r.randint(20, 100), r.randint(2, 99) * 10, r.randint(100, 9999)))
    part = r.randint(2, 99)
    return r.choice(
        (
            f"{cardinal(whole)} {unit}",
            f"{cardinal(whole)} {unit} and {cardinal(part)} {small}",
            f"{cardinal(part)} {small}",
            "one dollar" if unit == "dollars" else f"{cardinal(whole)} {unit}",
        )
    )


def phone(r: random.Random) -> str:
    """A telephone number in groups; the commas make a voice pause."""
    groups = r.choice(((3, 3, 4), (3, 4), (3, 3, 2, 2), (2, 2, 2, 2), (1, 3, 3, 4), (4, 3), (5, 6)))
    return ", ".join(digits(r, n) for n in groups)


def card(r: random.Random) -> str:
    """A playing card."""
    return f"{r.choice(RANKS)} of {r.choice(SUITS)}"


def spell(letters: str) -> Filled:
    """Letters one by one. Voices read a lone "a" as an article, so it is written "eh" only where a voice needs it."""
    return ", ".join(c.upper() for c in letters), " ".join(letters.lower())


def _letters(r: random.Random, count: int) -> Filled:
    return spell("".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count)))


def _plate(r: random.Random) -> Filled:
    spoken, written = _letters(r, r.randint(2, 3))
    number = digits(r, r.randint(2, 4))
    return f"{spoken}, {number}", f"{written} {number}"


def _same(make: Callable[[random.Random], str]) -> Callable[[random.Random], Filled]:
    def fill(r: random.Random) -> Filled:
        text = make(r)
        return text, text

    return fill


def _when(r: random.Random) -> str:
    return r.choice(
        (
            f"on {r.choice(WEEKDAYS)}",
            f"at {clock(r)}",
            f"on {date(r)}",
            f"in {r.choice(MONTHS)}",
            f"{r.choice(('next', 'last', 'this'))} {r.choice(WEEKDAYS)}",
            "tomorrow",
            "today",
            f"in {cardinal(r.randint(2, 59))} {r.choice(('minutes', 'hours', 'days', 'weeks'))}",
        )
    )


FILLERS: dict[str, Callable[[random.Random], Filled]] = {
    "DIGIT": _same(lambda r: cardinal(r.randint(0, 9))),
    "KEY": _same(lambda r: r.choice((*ONES[:10], *ONES[1:10], "star", "pound", "the pound key", "hash"))),
    "COUNT": _same(lambda r: cardinal(r.choice((r.randint(1, 12), r.randint(2, 60))))),
    "DIGITS": _same(lambda r: digits(r, r.randint(2, 6))),
    "LONGDIGITS": _same(lambda r: digits(r, r.randint(7, 16))),
    "NUMBER": _same(lambda r: cardinal(any_number(r), r.random() < 0.3)),
    "BIGNUMBER": _same(lambda r: cardinal(r.randint(100, 10 ** r.randint(3, 7)), r.random() < 0.4)),
    "ORDINAL": _same(lambda r: ordinal(r.choice((r.randint(1, 12), r.randint(1, 31), r.randint(1, 99))))),
    "YEAR": _same(lambda r: year(r.choice((r.randint(1900, 2030), r.randint(1000, 2099))))),
    "HOUR": _same(lambda r: cardinal(r.randint(1, 12))),
    "TIME": _same(clock),
    "DATE": _same(date),
    "WHEN": _same(_when),
    "WEEKDAY": _same(lambda r: r.choice(WEEKDAYS)),
    "MONTH": _same(lambda r: r.choice(MONTHS)),
    "SEASON": _same(lambda r: r.choice(SEASONS)),
    "MONEY": _same(money),
    "PHONE": _same(phone),
    "CARD": _same(card),
    "HOUSE": _same(lambda r: cardinal(r.choice((r.randint(1, 99), r.randint(1, 99), r.randint(100, 1999))))),
    "LETTER": lambda r: _letters(r, 1),
    "LETTERS": lambda r: _letters(r, r.randint(2, 7)),
    "PLATE": _plate,
    "NATOWORD": _same(lambda r: r.choice(NATO)),
    "NATO": _same(lambda r: ", ".join(r.sample(NATO, r.randint(2, 5)))),
}
