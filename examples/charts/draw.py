"""Draws bar charts of real cars, and asks what they show.

The table is the one of Donoho and Ramos (1982) that vega_datasets brings along. A chart has three to six cars of one
model year as bars, with the make before the bar and the value behind it. Training and validation show the model years
1970 to 1979; the held-out charts show 1980 and 1982, in other fonts.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from boxes import BOX, TEST_FONTS, TRAIN_FONTS, Form, table_file

YEARS = {"train": tuple(range(1970, 1980)), "test": (1980, 1982)}  # the table has no car of 1981
FONTS = {"train": TRAIN_FONTS, "test": TEST_FONTS}
COLUMNS, ROWS = 24, 12  # boxes; two crops side by side
LABELS, BARS, VALUES = 0, 11, 20  # the column of boxes where each begins
LONGEST_BAR = 8  # boxes
QUANTITIES = ("Horsepower", "Miles_per_Gallon")
KINDS = ("value", "extreme", "count")


@dataclass(frozen=True)
class Bar:
    """One car as it stands in a chart."""

    make: str
    text: str  # the value as printed
    value: float


@dataclass(frozen=True)
class Question:
    """What is asked of a chart; kinds are values, extremes and counts."""

    kind: str
    text: str
    answer: str


def cars(years: Sequence[int]) -> dict[int, list[dict[str, object]]]:
    """The rows of the table by model year."""
    found: dict[int, list[dict[str, object]]] = {year: [] for year in years}
    for row in json.loads(table_file("cars.json").read_text(encoding="utf-8")):
        year = int(row["Year"][:4])
        if year in found and all(row[quantity] for quantity in QUANTITIES):
            found[year].append(row)
    return {year: rows for year, rows in found.items() if rows}


def choose(rng: random.Random, rows: list[dict[str, object]], quantity: str) -> list[Bar]:
    """Cars of different makes with different values."""
    bars: list[Bar] = []
    wanted = rng.randint(3, 6)
    for row in rng.sample(rows, len(rows)):
        make, value = str(row["Name"]).split()[0], float(str(row[quantity]))
        another = make not in [bar.make for bar in bars] and value not in [bar.value for bar in bars]
        if len(make) < BARS - LABELS and another:
            bars.append(Bar(make, f"{value:g}", value))
        if len(bars) == wanted:
            break
    return bars


def draw(rng: random.Random, bars: list[Bar], font: tuple[str, str]) -> Form:
    """The chart."""
    form = Form(rng, font, COLUMNS, ROWS)
    colour = tuple(rng.randint(30, 170) for _ in range(3))
    scale = LONGEST_BAR * BOX / max(bar.value for bar in bars)
    first = rng.randint(0, 1)
    for index, bar in enumerate(bars):
        row = first + 2 * index
        form.write(LABELS, row, bar.make)
        top = row * BOX
        form.draw.rectangle((BARS * BOX, top + 4, BARS * BOX + bar.value * scale, top + BOX - 4), fill=colour)
        form.write(VALUES, row, bar.text)
    return form


def ask(rng: random.Random, bars: list[Bar]) -> list[Question]:
    """All that is asked of a chart, in a random order."""
    longest, shortest = (pick(bars, key=lambda bar: bar.value) for pick in (max, min))
    questions = [Question("value", f"What is the value of {bar.make}?", bar.text) for bar in bars]
    questions += [
        Question("extreme", "Which bar is the longest?", longest.make),
        Question("extreme", "Which bar is the shortest?", shortest.make),
        Question("count", "How many bars are there?", str(len(bars))),
    ]
    rng.shuffle(questions)
    return questions


def message(image: str | None, question: Question) -> list[dict[str, object]]:
    """A question with its answer as OpenAI messages."""
    parts: list[dict[str, object]] = [{"type": "text", "text": question.text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": question.answer}]


def draw_set(folder: Path, name: str, charts: int) -> Path:
    """Draw charts into FOLDER/NAME and write FOLDER/NAME.jsonl: in training a conversation for each chart.

    Held-out charts are asked one question of each kind, each in a record of its own with the kind in its id.
    """
    rng = random.Random(name)
    (folder / name).mkdir(parents=True)
    table = cars(YEARS[name])
    lines = []
    for index in range(charts):
        bars = choose(rng, table[rng.choice(sorted(table))], rng.choice(QUANTITIES))
        image = f"{name}/{index:04}.png"
        draw(rng, bars, rng.choice(FONTS[name])).image.save(folder / image)
        questions = ask(rng, bars)
        if name == "train":
            turns = [turn for at, one in enumerate(questions) for turn in message(None if at else image, one)]
            lines.append({"id": f"{name}-{index}", "messages": turns})
            continue
        for kind in KINDS:
            one = next(question for question in questions if question.kind == kind)
            lines.append({"id": f"{name}-{index}-{kind}", "messages": message(image, one)})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
