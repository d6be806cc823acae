"""Draw weather log sheets of the real Seattle record (NOAA, public domain) and write questions about them.

The sheets are in running print of 22 to 26 pixels, one day on each, in three layouts: dotted leaders, a ruled table,
and a slip with colons.

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
from paper import Sheet, table_file

TRAIN_YEARS, TEST_YEARS = (2013, 2014, 2015), (2012,)

# The names that the sheet prints, and the columns of the record. Training teaches which question means which.
COLUMNS = {"Rain mm": "precipitation", "High": "temp_max", "Low": "temp_min", "Wind": "wind", "Sky": "weather"}
QUESTIONS = {
    "Rain mm": "How much rain fell on {day}?",
    "High": "How warm did it get on {day}?",
    "Low": "How cold did it get on {day}?",
    "Wind": "How strong was the wind on {day}?",
    "Sky": "What was the weather like on {day}?",
}
# The same question in the words the nano base was trained on, for a fair measurement of the base.
OWN_FORM = "What is the {column}?"


@dataclass(frozen=True)
class Day:
    """One row of the record."""

    name: str  # as printed, e.g. "Mar 5"
    year: int
    cells: dict[str, str]  # values by printed name


def record(years: tuple[int, ...]) -> list[Day]:
    """Return the days of the given years, in order."""
    days = []
    with table_file("seattle-weather.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            date = datetime.datetime.strptime(row["date"], "%Y/%m/%d").date()
            if date.year in years:
                cells = {printed: row[column] for printed, column in COLUMNS.items()}
                days.append(Day(f"{date:%b} {date.day}", date.year, cells))
    return days


def leaders(rng: random.Random, day: Day, font: tuple[str, str]) -> Image.Image:
    """Draw the day in the title, then one line a value with a dotted leader."""
    sheet = Sheet(rng, font, 336, 330)
    y, pitch = rng.randint(24, 34), rng.randint(40, 48)
    sheet.write(12, y, f"Weather log, {day.name}")
    sheet.rule(y + pitch / 2, width=2)
    values_at = rng.randint(170, 210)
    for name, text in day.cells.items():
        y += pitch
        sheet.write(12, y, name)
        sheet.dots(20 + sheet.font.getlength(name), y + 6, values_at - 8)
        sheet.write(values_at, y, text)
    return sheet.image


def ruled(rng: random.Random, day: Day, font: tuple[str, str]) -> Image.Image:
    """Draw a ruled table of two columns under the station and the day."""
    sheet = Sheet(rng, font, 336, 330)
    y, pitch = rng.randint(20, 28), rng.randint(38, 44)
    sheet.write(12, y, "Seattle")
    sheet.write(180, y, day.name)
    top, values_at = y + pitch / 2, rng.randint(160, 190)
    for name, text in day.cells.items():
        sheet.rule(y + pitch / 2)
        y += pitch
        sheet.write(14, y, name)
        sheet.write(values_at, y, text)
    sheet.rule(y + pitch / 2)
    sheet.draw.line((values_at - 12, top, values_at - 12, y + pitch / 2), fill=sheet.ink)
    return sheet.image


def slip(rng: random.Random, day: Day, font: tuple[str, str]) -> Image.Image:
    """Draw names with a colon and values behind them, the day last, between two rules."""
    sheet = Sheet(rng, font, 336, 330)
    y, pitch, left = rng.randint(30, 44), rng.randint(38, 44), rng.randint(10, 40)
    sheet.rule(y - pitch / 2, width=2)
    for name, text in {**day.cells, "Day": day.name}.items():
        sheet.write(left, y, f"{name}: {text}")
        y += pitch
    sheet.rule(y - pitch / 2, width=2)
    return sheet.image


LAYOUTS = (leaders, ruled, slip)


def draw_set(
    folder: Path,
    name: str,
    years: tuple[int, ...],
    fonts: tuple[tuple[str, str], ...],
    sheets: int,
    asked: int,
    seed: int,
) -> None:
    """Draw sheets, write NAME.json with one question a record, and NAME-own-form.json with the base's own words.

    Both files use the InternLM-XComposer JSON format.

    Args:
        folder: Output folder for `NAME/` (the images) and the JSON files.
        name: Name of the set.
        years: Years of the record to take days from.
        fonts: Fonts to choose from.
        sheets: Number of sheets.
        asked: Most questions a sheet.
        seed: Random seed.
    """
    rng = random.Random(f"{name} {seed}")
    days = record(years)
    (folder / name).mkdir(parents=True)
    records, own_form = [], []
    for index in range(sheets):
        day = rng.choice(days)
        path = f"{name}/{index:04d}.png"
        LAYOUTS[index % len(LAYOUTS)](rng, day, rng.choice(fonts)).save(folder / path)
        for number, column in enumerate(rng.sample(list(COLUMNS), asked)):
            for words, to in ((QUESTIONS[column], records), (OWN_FORM, own_form)):
                question = words.format(day=day.name, column=column)
                to.append(_record(f"{name}-{index}-{number}", path, question, day.cells[column]))
    (folder / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (folder / f"{name}-own-form.json").write_text(json.dumps(own_form, indent=1), encoding="utf-8")


def _record(identity: str, path: str, question: str, answer: str) -> dict[str, object]:
    conversations = [{"from": "user", "value": "<ImageHere>" + question}, {"from": "assistant", "value": answer}]
    return {"id": identity, "image": [path], "conversations": conversations}
