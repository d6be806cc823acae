"""Prints directories of real airports on three pages, and asks where things stand in them.

The table of airports in the United States comes with vega_datasets (public domain). A page has its number and a state
in the head, and below them airports by code and town. The held-out directories show states that training does not, in
other fonts: no code and hardly a town of them was trained on.
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
CODE, TOWN = 0, 4  # the column of boxes where each begins
LEAST_AIRPORTS = 20  # of a state that is shown
PAGES = 3
# boxes down a page -> the hd_num of a record with such pages, and how often there is one
HD_NUM = {12: 1, 24: 2}
SHARES = {12: 3, 24: 1}
KINDS = {"town": 4, "page": 3, "state": 3}  # and how many of each are asked in training


@dataclass(frozen=True)
class Page:
    """What stands on one page."""

    state: str
    airports: tuple[tuple[str, str], ...]  # code, town


@cache
def airports() -> dict[str, list[tuple[str, str]]]:
    """(code, town) by state: one airport for each town whose name fits into its boxes."""
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
    """Those of a set: train, validation or test."""
    kept = {"validation": VALIDATION_STATES, "test": TEST_STATES}
    return kept.get(name) or sorted(set(airports()) - {*VALIDATION_STATES, *TEST_STATES})


def draw(rng: random.Random, font: tuple[str, str], rows: int, number: int, page: Page) -> Image.Image:
    """Page `number`, of so many rows of boxes."""
    form = Form(rng, font, COLUMNS, rows)
    form.write(0, 0, f"PAGE {number}")
    form.write(COLUMNS - 3, 0, page.state)
    form.rule(1)
    for at, (code, town) in enumerate(page.airports):
        form.write(CODE, 2 + 2 * at, code)
        form.write(TOWN, 2 + 2 * at, town)
    return form.image


def ask(rng: random.Random, pages: Sequence[Page]) -> list[tuple[str, str, str]]:
    """(kind, question, answer), in a random order."""
    listed = [(number, *airport) for number, page in enumerate(pages, 1) for airport in page.airports]
    asked = [("town", f"What is the {code}?", town) for _, code, town in rng.sample(listed, KINDS["town"])]
    asked += [("page", f"On which page is {code}?", str(at)) for at, code, _ in rng.sample(listed, KINDS["page"])]
    asked += [("state", f"Which state is on page {number}?", page.state) for number, page in enumerate(pages, 1)]
    rng.shuffle(asked)
    return asked


def record(name: str, images: list[str], hd_num: int, asked: Sequence[tuple[str, str, str]]) -> dict[str, object]:
    """A conversation in the official form, the pages before its first question."""
    turns = []
    for at, (_, question, answer) in enumerate(asked):
        turns.append({"from": "user", "value": ("<ImageHere>" * len(images) if at == 0 else "") + question})
        turns.append({"from": "assistant", "value": answer})
    return {"id": name, "image": images, "hd_num": hd_num, "conversations": turns}


def draw_set(folder: Path, name: str, directories: int) -> Path:
    """Draw directories into FOLDER/NAME and write FOLDER/NAME.json: in training one conversation for each.

    Otherwise one question of each kind, each in a record of its own with the kind in its id.
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
        if name == "train":
            written.append(record(f"{name}-{index}", images, HD_NUM[rows], asked))
            continue
        for kind in KINDS:
            one = next(question for question in asked if question[0] == kind)
            written.append(record(f"{name}-{index}-{kind}", images, HD_NUM[rows], [one]))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(written, indent=1), encoding="utf-8")
    return path
