"""Draw weather log sheets of the real Seattle record (NOAA, public domain) and write questions about them.

The sheets look like official forms, with one character to a box of 28 pixels, because the nano base reads only large
print.

Training sheets show 2013 to 2015 in Lato, Caladea and Manrope. Held-out sheets show 2012 in Source Sans and Source
Serif. The nano base was not trained on any of these fonts, sheets or questions.
"""

from __future__ import annotations

import csv
import datetime
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from boxes import Form, table_file

TRAIN_YEARS, TEST_YEARS = (2013, 2014, 2015), (2012,)

# The codes that the sheet prints (NOAA's), and the columns of the record. Training teaches which question means which.
COLUMNS = {"PRCP": "precipitation", "TMAX": "temp_max", "TMIN": "temp_min", "AWND": "wind", "SKY": "weather"}
QUESTIONS = {
    "PRCP": "How much rain fell on {day}?",
    "TMAX": "How warm did it get on {day}?",
    "TMIN": "How cold did it get on {day}?",
    "AWND": "How strong was the wind on {day}?",
    "SKY": "What was the weather like on {day}?",
}
# The same question in the words the nano base was trained on, for a fair measurement of the base.
OWN_FORM = "What is the {column} of {day}?"


@dataclass(frozen=True)
class Day:
    """One row of the record."""

    name: str  # as printed, e.g. "Mar 5"
    cells: dict[str, str]  # values by printed code


def record(years: tuple[int, ...]) -> list[Day]:
    """Return the days of the given years, in order."""
    days = []
    with table_file("seattle-weather.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            date = datetime.datetime.strptime(row["date"], "%Y/%m/%d").date()
            if date.year in years:
                cells = {printed: row[column] for printed, column in COLUMNS.items()}
                days.append(Day(f"{date:%b} {date.day}", cells))
    return days


def table(rng: random.Random, days: list[Day], font: tuple[str, str]) -> Image.Image:
    """Draw a wide sheet: five days as rows under a header."""
    form = Form(rng, font, 36, 12)
    stops = (0, 7, 12, 17, 22, 27)
    for row, texts in enumerate([("DAY", *COLUMNS), *((day.name, *day.cells.values()) for day in days)]):
        for stop, text in zip(stops, texts, strict=True):
            form.write(stop, 2 * row + 1, text)
    if rng.random() < 0.5:
        form.rule(3)
    return form.image


def cards(rng: random.Random, days: list[Day], font: tuple[str, str], columns: int, rows: int) -> Image.Image:
    """Draw a block of lines for each day, one under the other."""
    form = Form(rng, font, columns, rows)
    left, block = rng.randint(0, columns - 12), rows // len(days)
    for index, day in enumerate(days):
        for line, (code, text) in enumerate([("DAY", day.name), *day.cells.items()]):
            form.write(left, index * block + line + 1, code)
            form.write(left + 5, index * block + line + 1, text)
        if index and rng.random() < 0.5:
            form.rule(index * block)
    return form.image


def square_cards(rng: random.Random, days: list[Day], font: tuple[str, str]) -> Image.Image:
    """Draw a square sheet with three days."""
    return cards(rng, days, font, 24, 24)


def tall_cards(rng: random.Random, days: list[Day], font: tuple[str, str]) -> Image.Image:
    """Draw a tall sheet with four days."""
    return cards(rng, days, font, 12, 36)


# (function that draws a sheet, number of days on it); at hd_num 4 the grids are 1x3, 2x2 and 3x1 crops
FORMS = ((table, 5), (square_cards, 3), (tall_cards, 4))


def draw_set(
    folder: Path,
    name: str,
    years: tuple[int, ...],
    fonts: tuple[tuple[str, str], ...],
    sheets: int,
    asked: int,
    seed: int,
) -> None:
    """Draw sheets and write NAME.json; with one question a record, also write NAME-own-form.json.

    Both files use the InternLM-XComposer JSON format; the second asks in the words the base was trained on.

    Args:
        folder: Output folder for `NAME/` (the images) and the JSON files.
        name: Name of the set.
        years: Years of the record to take days from.
        fonts: Fonts to choose from.
        sheets: Number of sheets.
        asked: Questions a sheet; more than two become one conversation of several turns.
        seed: Random seed.
    """
    rng = random.Random(f"{name} {seed}")
    days = record(years)
    (folder / name).mkdir(parents=True)
    records, own_form = [], []
    for index in range(sheets):
        kind, count = FORMS[index % len(FORMS)]
        start = rng.randrange(len(days) - count)
        shown = days[start : start + count]
        image = kind(rng, shown, rng.choice(fonts))
        path = f"{name}/{index:04d}.png"
        image.save(folder / path)
        pairs = rng.sample([(day, column) for day in shown for column in COLUMNS], asked)
        turns = [(QUESTIONS[column].format(day=day.name), day.cells[column]) for day, column in pairs]
        if asked > 2:
            records.append(_record(f"{name}-{index}", path, turns))
            continue
        for number, (turn, (day, column)) in enumerate(zip(turns, pairs, strict=True)):
            records.append(_record(f"{name}-{index}-{number}", path, [turn]))
            own = (OWN_FORM.format(column=column, day=day.name), day.cells[column])
            own_form.append(_record(f"{name}-{index}-{number}", path, [own]))
    (folder / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    if own_form:
        (folder / f"{name}-own-form.json").write_text(json.dumps(own_form, indent=1), encoding="utf-8")


def _record(identity: str, path: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    conversations = []
    for index, (question, answer) in enumerate(turns):
        conversations.append({"from": "user", "value": ("<ImageHere>" if index == 0 else "") + question})
        conversations.append({"from": "assistant", "value": answer})
    return {"id": identity, "image": [path], "conversations": conversations}
