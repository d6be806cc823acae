"""Words and values that generated pages print."""

from __future__ import annotations

import random
import string
from collections import defaultdict
from functools import lru_cache

WORDS = (
    "account address age agent amount area balance bill black blue box branch brown buyer card case cash center "
    "charge check city class client code color cost country county credit customer date day debit deep depth "
    "district dose due east end entry exit fee field file final first fish flight floor form from front gate "
    "green grid group guest hall head heat height hour house income index item job key kind label land last lead "
    "left length level limit line list load lot low main mark mass max mean member method min mode model month "
    "name net night north note number office order owner page paid part party paper path peak place plan plant "
    "point port power price rate ratio red region rent result right river road room route row sale sample score "
    "sea seat section seller serial shift ship shop side sign site size slot soil south speed stage start state "
    "station status step stock store street style sum supply table task tax team temp term time title tool total "
    "town track train tree trip type unit user value vendor view volume ward water week weight west white width "
    "wind wood yard year zone apple bread clear cloud drizzle fog rain snow sun warm cold dry wet open closed yes no "
    "about above after again air all also and any are back been before below best better big both bring build business "
    "but buy by call can change child close come company could daily dear delivery detail did different do down each "
    "early easy eat energy engine enough every example eye fact family far farm few find fine fire follow food foot "
    "for friend full game garden general give glass go good great ground grow had half hand happy hard has have he her "
    "here high him his home hope how however if important in into is it just keep know large late law learn less let "
    "letter life light like little live local long look love make man many may me mean meet milk mind minute money "
    "more morning most mother move much music must my near need never new next nice nor not now of off often oil old "
    "on once one only or other our out over own people person phone picture piece play please poor present product "
    "program public put question quick rather read ready real receipt record report rest round run said salt same "
    "save say school second see seem sell send service set several she short should show simple since small so some "
    "soon sound space special stand still stop story strong study such sugar summer sure system take talk tea tell "
    "ten test than thank that the their them then there these they thing think this those three through to today "
    "together tomorrow too top toward travel true try turn two under until up upon us use usual very visit wait walk "
    "wall want was way we well went were what when where which while who why wide will window winter wish with without "
    "woman word work world would write wrong young your zero pressure humidity temperature precipitation visibility "
    "invoice quantity discount payment signature department manager article reference maximum minimum average"
).split()
PRINTABLE = string.ascii_letters + string.digits + ".,:;-/()%$#&'+*=<>[]_@!?\"°€"
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
FULL_MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Mon Tue Wed Thu Fri Sat Sun".split()
UNITS = "mm cm m km g kg l ml °C °F % m/s km/h hPa kWh pcs h min USD EUR".split()


@lru_cache(maxsize=1)
def _followers() -> dict[str, list[str]]:
    """Return, for each pair of letters in WORDS, the letters that follow it."""
    table = defaultdict(list)
    for word in WORDS:
        padded = f"^^{word}$"
        for at in range(len(padded) - 2):
            table[padded[at : at + 2]].append(padded[at + 2])
    return dict(table)


def invented_word(rng: random.Random) -> str:
    """Return a word with the letter statistics of English that cannot be guessed and so has to be read."""
    table = _followers()
    while True:
        text = "^^"
        while len(text) < 13:
            letter = rng.choice(table[text[-2:]])
            if letter == "$":
                break
            text += letter
        if 3 <= len(text) - 2 <= 10:
            return text[2:]


def word(rng: random.Random) -> str:
    """Return a listed or invented word in lower case, capitalized or in capitals."""
    chosen = rng.choice(WORDS) if rng.random() < 0.5 else invented_word(rng)
    roll = rng.random()
    return chosen if roll < 0.55 else chosen.capitalize() if roll < 0.85 else chosen.upper()


def number(rng: random.Random) -> str:
    """Return a whole or decimal number, sometimes signed or with thousands separators."""
    roll = rng.random()
    if roll < 0.35:
        return str(rng.randint(0, 10 ** rng.randint(1, 5)))
    if roll < 0.75:
        return f"{rng.choice(['', '', '', '-'])}{rng.randint(0, 99)}.{rng.randint(0, 9)}"
    if roll < 0.9:
        return f"{rng.randint(0, 999)}.{rng.randint(0, 99):02d}"
    return f"{rng.randint(1000, 9_999_999):,}"


def date(rng: random.Random) -> str:
    """Return a date in one of seven forms."""
    year, month, day = rng.randint(1950, 2030), rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice(
        [
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}/{month:02d}/{year}",
            f"{month}/{day}",
            f"{day} {MONTHS[month - 1]}",
            f"{MONTHS[month - 1]} {day}",
            f"{FULL_MONTHS[month - 1]} {day}, {year}",
            f"{rng.choice(DAYS)} {day}.{month}.",
        ]
    )


def value(rng: random.Random) -> str:
    """Return the text of a table cell or a form field."""
    roll = rng.random()
    if roll < 0.30:
        return number(rng)
    if roll < 0.40:
        return f"{number(rng)} {rng.choice(UNITS)}"
    if roll < 0.48:
        return f"{rng.choice(['$', '€', ''])}{rng.randint(0, 9999)}.{rng.randint(0, 99):02d}"
    if roll < 0.52:
        return f"{rng.randint(0, 100)}%"
    if roll < 0.62:
        return date(rng)
    if roll < 0.66:
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if roll < 0.71:
        return "".join(rng.choice(string.ascii_uppercase) for _ in range(2)) + f"-{rng.randint(100, 9999)}"
    if roll < 0.74:
        return "".join(rng.choice(PRINTABLE) for _ in range(rng.randint(2, 7)))
    if roll < 0.95:
        return word(rng)
    return f"{word(rng)} {word(rng)}"
