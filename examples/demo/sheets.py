"""Draws weather log sheets from the real Seattle record (NOAA, public domain), and asks what stands on them.

Training sheets show 2013 to 2015 and are set in Lato, Caladea and Manrope. The held-out ones show 2012 and are set in
Source Sans and Source Serif. The nano base has met none of these fonts, sheets or questions.
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TRAIN_YEARS, TEST_YEARS = (2013, 2014, 2015), (2012,)
TRAIN_FONTS = (
    ("font_lato", "Lato-Regular.ttf"),
    ("font_lato", "Lato-Bold.ttf"),
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_manrope", "Manrope-Medium.ttf"),
)
TEST_FONTS = (
    ("font_source_sans_pro", "SourceSansPro-Regular.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
)

# What the sheet prints, and what people ask. That these belong together is what there is to learn.
COLUMNS = {"precip": "precipitation", "Tmax": "temp_max", "Tmin": "temp_min", "wind": "wind", "sky": "weather"}
QUESTIONS = {
    "precip": "How much rain fell on {day}?",
    "Tmax": "How warm did it get on {day}?",
    "Tmin": "How cold did it get on {day}?",
    "wind": "How strong was the wind on {day}?",
    "sky": "What was the weather like on {day}?",
}
# The same question as the nano base was taught to ask of any table, for a fair look at the base.
OWN_FORM = "What is the {column} of {day}?"


@dataclass(frozen=True)
class Day:
    """One row of the record."""

    name: str  # as printed, such as "Mar 5"
    cells: dict[str, str]  # by printed column


def record(years: tuple[int, ...]) -> list[Day]:
    """The days of some years, in order."""
    spec = importlib.util.find_spec("vega_datasets")
    if spec is None or spec.origin is None:
        raise SystemExit("vega_datasets is not installed: pip install 'ixtune[demo]'")
    days = []
    with (Path(spec.origin).parent / "_data" / "seattle-weather.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            date = datetime.datetime.strptime(row["date"], "%Y/%m/%d").date()
            if date.year in years:
                cells = {printed: row[column] for printed, column in COLUMNS.items()}
                days.append(Day(f"{date:%b} {date.day}", cells))
    return days


def font_file(package: str, name: str) -> str:
    """A font that a package brings along."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install 'ixtune[demo]'")
    return str(Path(spec.origin).parent / "files" / name)


def table(rng: random.Random, days: list[Day], font_path: str, width: int, height: int) -> Image.Image:
    """Days as rows under a header."""
    size = rng.randint(23, 27)
    font = ImageFont.truetype(font_path, size)
    paper, ink = (rng.randint(240, 255),) * 3, (rng.randint(0, 60),) * 3
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    step, pitch = (width - 16) / 6, (height - 16) / (len(days) + 1)
    lines = [("day", *COLUMNS), *((day.name, *day.cells.values()) for day in days)]
    ruled = rng.random() < 0.5
    for row, texts in enumerate(lines):
        y = 8 + row * pitch
        for column, text in enumerate(texts):
            draw.text((12 + column * step, y + (pitch - size * 1.25) / 2), text, font=font, fill=ink)
        if ruled or row == 0:
            draw.line((8, y + pitch, width - 8, y + pitch), fill=ink)
    return image


def cards(rng: random.Random, days: list[Day], font_path: str, width: int, height: int) -> Image.Image:
    """Days as blocks of lines, one under the other."""
    size = rng.randint(24, 28)
    font = ImageFont.truetype(font_path, size)
    paper, ink = (rng.randint(240, 255),) * 3, (rng.randint(0, 60),) * 3
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    block = (height - 16) / len(days)
    pitch = block / 6.6
    for index, day in enumerate(days):
        y = 8 + index * block
        for line, (left, right) in enumerate([("day", day.name), *day.cells.items()]):
            draw.text((16, y + line * pitch), left, font=font, fill=ink)
            draw.text((width * 0.5, y + line * pitch), right, font=font, fill=ink)
        draw.line((8, y + block - pitch * 0.3, width - 8, y + block - pitch * 0.3), fill=ink)
    return image


# kind, days on the sheet, width, height: at hd_num 4 these become grids of 2x2, 1x3 and 3x1 crops
FORMS = ((table, 8, 672, 660), (table, 5, 1008, 330), (cards, 4, 330, 1008))


def draw_set(
    folder: Path,
    name: str,
    years: tuple[int, ...],
    fonts: tuple[tuple[str, str], ...],
    sheets: int,
    asked: int,
    seed: int,
) -> None:
    """Draw sheets and write NAME.json in the official form; with one question a record, also NAME-own-form.json.

    Args:
        folder: where `NAME/` with the pictures and the JSON go.
        name: of the set.
        years: which days may be shown.
        fonts: which fonts may be used.
        sheets: how many.
        asked: questions a sheet; more than two make one conversation of several turns.
        seed: of everything that is drawn.
    """
    rng = random.Random(f"{name} {seed}")
    days = record(years)
    (folder / name).mkdir(parents=True)
    records, own_form = [], []
    for index in range(sheets):
        kind, count, width, height = FORMS[index % len(FORMS)]
        start = rng.randrange(len(days) - count)
        shown = days[start : start + count]
        picture = kind(rng, shown, font_file(*rng.choice(fonts)), width, height)
        path = f"{name}/{index:04d}.png"
        picture.save(folder / path)
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
