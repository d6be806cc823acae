"""Draw bar charts of real cars and write questions about them.

The table is that of Donoho and Ramos (1982) in vega_datasets. A chart shows three to six cars of one model year as
horizontal bars, with the make to the left of the bar and the value to its right. Training and validation use the model
years 1970 to 1979; held-out charts use 1980 and 1982, in other fonts.
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

YEARS = {"train": tuple(range(1970, 1980)), "test": (1980, 1982)}  # the table has no cars of 1981
FONTS = {"train": TRAIN_FONTS, "test": TEST_FONTS}
COLUMNS, ROWS = 24, 12  # boxes; two crops side by side
LABELS, BARS, VALUES = 0, 11, 20  # first column of boxes of each
LONGEST_BAR = 8  # in boxes
QUANTITIES = ("Horsepower", "Miles_per_Gallon")
KINDS = ("value", "extreme", "count")


@dataclass(frozen=True)
class Bar:
    """One car in a chart."""

    make: str
    text: str  # the value as printed
    value: float


@dataclass(frozen=True)
class Question:
    """A question about a chart; its kind is value, extreme or count."""

    kind: str
    text: str
    answer: str


def cars(years: Sequence[int]) -> dict[int, list[dict[str, object]]]:
    """Return the rows of the table by model year."""
    found: dict[int, list[dict[str, object]]] = {year: [] for year in years}
    for row in json.loads(table_file("cars.json").read_text(encoding="utf-8")):
        year = int(row["Year"][:4])
        if year in found and all(row[quantity] for quantity in QUANTITIES):
            found[year].append(row)
    return {year: rows for year, rows in found.items() if rows}


def choose(rng: random.Random, rows: list[dict[str, object]], quantity: str) -> list[Bar]:
    """Return three to six cars of different makes with different values."""
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
    """Draw a chart."""
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
    """Return all questions about a chart, in random order."""
    longest, shortest = (pick(bars, key=lambda bar: bar.value) for pick in (max, min))
    questions = [Question("value", f"What is the value of {bar.make}?", bar.text) for bar in bars]
    questions += [
        Question("extreme", "Which bar is the longest?", longest.make),
        Question("extreme", "Which bar is the shortest?", shortest.make),
        Question("count", "How many bars are there?", str(len(bars))),
    ]
    rng.shuffle(questions)
    return questions


def messages(image: str, question: Question) -> list[dict[str, object]]:
    """Return a question about an image and its answer as OpenAI messages."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question.text}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": question.answer}]


def draw_set(folder: Path, name: str, charts: int) -> Path:
    """Draw charts into FOLDER/NAME, write FOLDER/NAME.jsonl and return its path.

    Training charts get all their questions, held-out charts one of each kind. Each question is a record of its own,
    with the kind at the end of the id.
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
        if name != "train":
            questions = [next(one for one in questions if one.kind == kind) for kind in KINDS]
        for at, one in enumerate(questions):
            lines.append({"id": f"{name}-{index}-{at}-{one.kind}", "messages": messages(image, one)})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
