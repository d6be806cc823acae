"""Draw directories of real airports on three pages and write questions about them.

The table of airports in the United States comes with vega_datasets (public domain). Each page has its number and a
state in the header, and below them airports by code and town. Held-out directories use states and fonts that training
does not: none of their codes and hardly any of their towns occur in training.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from boxes import TEST_FONTS, TRAIN_FONTS, Form, table_file

VALIDATION_STATES = ("CA", "IL", "OK", "TX")
TEST_STATES = ("AZ", "FL", "GA", "KS", "MI", "NE", "OH", "WA")
COLUMNS = 12  # boxes across a page
CODE, TOWN = 0, 4  # first column of boxes of each
LEAST_AIRPORTS = 20  # minimum for a state to be used
PAGES = 3
# rows of boxes on a page -> the record's hd_num, and its relative frequency
HD_NUM = {12: 1, 24: 2}
SHARES = {12: 3, 24: 1}
KINDS = {"town": 4, "page": 3, "state": 3}  # training questions of each kind


@dataclass(frozen=True)
class Page:
    """The content of one page."""

    state: str
    airports: tuple[tuple[str, str], ...]  # code, town


@cache
def airports() -> dict[str, list[tuple[str, str]]]:
    """Return (code, town) pairs by state: one airport for each town whose name fits into its boxes."""
    found: dict[str, dict[str, str]] = {}
    with table_file("airports.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["city"].isalpha() and len(row["city"]) <= COLUMNS - TOWN and len(row["iata"]) == TOWN - 1:
                found.setdefault(row["state"], {}).setdefault(row["city"], row["iata"])
    return {
        state: [(code, town) for town, code in towns.items()]
        for state, towns in sorted(found.items())
        if len(towns) >= LEAST_AIRPORTS
    }


def states(name: str) -> Sequence[str]:
    """Return the states of a set: train, validation or test."""
    kept = {"validation": VALIDATION_STATES, "test": TEST_STATES}
    return kept.get(name) or sorted(set(airports()) - {*VALIDATION_STATES, *TEST_STATES})


def draw(rng: random.Random, font: tuple[str, str], rows: int, number: int, page: Page) -> Image.Image:
    """Draw page `number` with `rows` rows of boxes."""
    form = Form(rng, font, COLUMNS, rows)
    form.write(0, 0, f"PAGE {number}")
    form.write(COLUMNS - 3, 0, page.state)
    form.rule(1)
    for at, (code, town) in enumerate(page.airports):
        form.write(CODE, 2 + 2 * at, code)
        form.write(TOWN, 2 + 2 * at, town)
    return form.image


def ask(rng: random.Random, pages: Sequence[Page]) -> list[tuple[str, str, str]]:
    """Return (kind, question, answer) triples in random order."""
    listed = [(number, *airport) for number, page in enumerate(pages, 1) for airport in page.airports]
    asked = [("town", f"What is the {code}?", town) for _, code, town in rng.sample(listed, KINDS["town"])]
    asked += [("page", f"On which page is {code}?", str(at)) for at, code, _ in rng.sample(listed, KINDS["page"])]
    asked += [("state", f"Which state is on page {number}?", page.state) for number, page in enumerate(pages, 1)]
    rng.shuffle(asked)
    return asked


def record(name: str, images: list[str], hd_num: int, question: str, answer: str) -> dict[str, object]:
    """Return a question about all pages in the InternLM-XComposer JSON format."""
    turns = [
        {"from": "user", "value": "<ImageHere>" * len(images) + question},
        {"from": "assistant", "value": answer},
    ]
    return {"id": name, "image": images, "hd_num": hd_num, "conversations": turns}


def draw_set(folder: Path, name: str, directories: int) -> Path:
    """Draw directories into FOLDER/NAME, write FOLDER/NAME.json and return its path.

    Training directories get ten questions, the others one of each kind. Each question is a record of its own, with
    the kind at the end of the id.
    """
    rng = random.Random(name)
    (folder / name).mkdir(parents=True)
    table, fonts = airports(), TEST_FONTS if name == "test" else TRAIN_FONTS
    written = []
    for index in range(directories):
        rows = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        chosen = rng.sample(states(name), PAGES)
        pages = [Page(state, tuple(rng.sample(table[state], rows // 2 - 1))) for state in chosen]
        font = rng.choice(fonts)
        images = [f"{name}/{index:04}-{number}.png" for number in range(1, PAGES + 1)]
        for number, (image, page) in enumerate(zip(images, pages, strict=True), 1):
            draw(rng, font, rows, number, page).save(folder / image)
        asked = ask(rng, pages)
        if name != "train":
            asked = [next(one for one in asked if one[0] == kind) for kind in KINDS]
        for at, (kind, question, answer) in enumerate(asked):
            written.append(record(f"{name}-{index}-{at}-{kind}", images, HD_NUM[rows], question, answer))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(written, indent=1), encoding="utf-8")
    return path
