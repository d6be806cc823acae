"""Draw the labels of one printer for real cars and write questions about them in the nano base's own words.

The table is that of Donoho and Ramos (1982) in vega_datasets. Every label has the same layout, face and size, as
labels of one printer do. Training uses cars of the model years 1970 to 1979, held-out labels those of 1980 and 1982.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from paper import font_file, table_file

YEARS = {"train": range(1970, 1980), "test": (1980, 1982)}  # the table has no cars of 1981
FACE = ("font_lato", "Lato-Black.ttf")  # the base was not trained on this family, nor on any face so heavy
SIZE = 20  # pixels
WIDTH, HEIGHT, PITCH, VALUES_AT = 336, 330, 42, 130
# printed names and columns
NUMBERS = {
    "Engine": "Displacement",
    "Power": "Horsepower",
    "Weight": "Weight_in_lbs",
    "Economy": "Miles_per_Gallon",
}
FIELDS = ("Make", "Model", *NUMBERS)
QUESTION = "What is the {field}?"  # one of the wordings that the base was trained on


def cars(years: range | tuple[int, ...]) -> list[dict[str, str]]:
    """Return the printed fields of every car of the given model years that has them all, in the table's order."""
    found = []
    for row in json.loads(table_file("cars.json").read_text(encoding="utf-8")):
        make, *model = str(row["Name"]).split()
        if int(row["Year"][:4]) in years and model and all(row[column] for column in NUMBERS.values()):
            numbers = {field: f"{row[column]:g}" for field, column in NUMBERS.items()}
            found.append({"Make": make.capitalize(), "Model": " ".join(model), **numbers})
    return found


def fitting(font: ImageFont.FreeTypeFont, text: str) -> str:
    """Return `text` without the last words that do not fit on a label."""
    while font.getlength(text) > WIDTH - VALUES_AT - 24:
        text = text.rpartition(" ")[0]
    return text


def draw(rng: random.Random, car: dict[str, str]) -> tuple[Image.Image, dict[str, str]]:
    """Draw a label: a frame, one line a field, and bars at the bottom; return it with the values as printed."""
    font = ImageFont.truetype(font_file(*FACE), SIZE)
    image = Image.new("RGB", (WIDTH, HEIGHT), (rng.randint(240, 255),) * 3)
    pen, ink = ImageDraw.Draw(image), (rng.randint(0, 60),) * 3
    left, y = rng.randint(14, 22), rng.randint(26, 38)
    pen.rectangle((4, 4, WIDTH - 5, HEIGHT - 5), outline=ink, width=2)
    printed = {field: fitting(font, text) for field, text in car.items()}
    for field, text in printed.items():
        pen.text((left, y), f"{field}:", font=font, fill=ink, anchor="lm")
        pen.text((VALUES_AT, y), text, font=font, fill=ink, anchor="lm")
        y += PITCH
    x = left
    while x < WIDTH - 24:
        wide = rng.choice((1, 2, 3))
        pen.rectangle((x, y, x + wide - 1, HEIGHT - 16), fill=ink)
        x += wide + rng.choice((1, 2, 3))
    return image, printed


def draw_set(folder: Path, name: str, labels: int, asked: int = len(FIELDS)) -> Path:
    """Draw labels of different cars, write FOLDER/NAME.json with `asked` questions about each, and return its path."""
    rng = random.Random(name)
    (folder / name).mkdir(parents=True)
    records = []
    for index, car in enumerate(rng.sample(cars(YEARS[name]), labels)):
        image, printed = draw(rng, car)
        path = f"{name}/{index:04}.png"
        image.save(folder / path)
        for field in rng.sample(FIELDS, asked):
            question = "<ImageHere>" + QUESTION.format(field=field)
            turns = [{"from": "user", "value": question}, {"from": "assistant", "value": printed[field]}]
            records.append({"id": f"{name}-{index}-{field}", "image": [path], "conversations": turns})
    file = folder / f"{name}.json"
    file.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return file
