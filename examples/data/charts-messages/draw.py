"""Draw charts of public tables and write questions about them as OpenAI messages.

    python draw.py [FOLDER]

writes charts/*.png and messages.jsonl to FOLDER (default: the folder of this script). The tables come with the package
vega_datasets: Iowa's electricity (U.S. Energy Information Administration), employment in the United States (U.S.
Bureau of Labor Statistics), Seattle's weather (NOAA), and the price of wheat (William Playfair, 1822). Every answer is
computed from the table that its chart shows.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
SCALE = 2  # charts are drawn in double size and reduced, so that slanted lines come out smooth
INK, GREY, PALE = "#202020", "#707070", "#d8d8d8"
COLOURS = {"blue": "#2b6cb0", "orange": "#dd7a1f", "green": "#3a8f4d"}
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
SYSTEM = "You read charts. Answer with the value or the name alone."


def table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table in vega_datasets, all values as text."""
    spec = importlib.util.find_spec("vega_datasets")
    if spec is None or spec.origin is None:
        raise SystemExit("vega_datasets is not installed: pip install 'ixtune[demo]'")
    text = (Path(spec.origin).parent / "_data" / name).read_text(encoding="utf-8")
    if name.endswith(".csv"):
        return list(csv.DictReader(text.splitlines()))
    return [{key: str(value) for key, value in row.items()} for row in json.loads(text)]


@dataclass(frozen=True)
class Series:
    """Named values in the order of the chart, with the number of decimals to print."""

    values: dict[str, float]
    digits: int = 0

    def text(self, name: str) -> str:
        """Return a value as the chart prints it."""
        return f"{self.values[name]:,.{self.digits}f}"

    def largest(self) -> str:
        """Return the name of the largest value; fail if two are equal."""
        return self._only(max(self.values.values()))

    def smallest(self) -> str:
        """Return the name of the smallest value; fail if two are equal."""
        return self._only(min(self.values.values()))

    def _only(self, value: float) -> str:
        (name,) = (name for name, other in self.values.items() if other == value)
        return name

    def above(self, limit: float) -> int:
        """Return how many values are larger than `limit`."""
        return sum(value > limit for value in self.values.values())


class Canvas:
    """A white sheet with a title, in pixels of the finished image."""

    def __init__(self, width: int, height: int, title: str, unit: str, source: str) -> None:
        self.size = width, height
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.text(30, 36, title, 24, anchor="lm")
        self.text(30, 68, unit, 17, GREY, "lm")
        self.text(width - 30, height - 20, f"Source: {source}", 14, GREY, "rm")

    def text(self, x: float, y: float, text: str, size: int = 17, colour: str = INK, anchor: str = "mm") -> None:
        """Write a line of text; `anchor` is Pillow's."""
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)

    def line(self, points: Iterable[tuple[float, float]], colour: str = INK, width: int = 1) -> None:
        """Draw a line through points."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, fill=colour, width=width * SCALE, joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Fill a box between two corners."""
        if round(bottom * SCALE) > round(top * SCALE):  # a month without rain has none
            self.draw.rectangle([left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1], fill=colour)

    def save(self, path: Path) -> None:
        """Write the chart as PNG."""
        self.image.reduce(SCALE).save(path, optimize=True)


def columns(series: Series, width: int, height: int, colour: str, **texts: str) -> Canvas:
    """Draw a chart of vertical bars with their values; negative bars point down."""
    canvas = Canvas(width, height, **texts)
    top, bottom, left, right = 115, height - 85, 40, width - 30
    low, high = min(0.0, *series.values.values()), max(0.0, *series.values.values())
    zero = bottom - (bottom - top) * -low / (high - low)
    step = (right - left) / len(series.values)
    for number, (name, value) in enumerate(series.values.items()):
        middle = left + (number + 0.5) * step
        end = zero - (bottom - top) * value / (high - low)
        canvas.box(middle - 0.36 * step, min(end, zero), middle + 0.36 * step, max(end, zero), colour)
        canvas.text(middle, end + (-13 if value >= 0 else 13), series.text(name), 15)
        canvas.text(middle, bottom + 34, name, 16)
    canvas.line([(left, zero), (right, zero)])
    return canvas


def rows(series: Series, width: int, margin: int, colour: str, **texts: str) -> Canvas:
    """Draw a chart of horizontal bars with their values; `margin` is the width reserved for their names."""
    height = 150 + 44 * len(series.values)
    canvas = Canvas(width, height, **texts)
    length = (width - margin - 110) / max(series.values.values())
    for number, (name, value) in enumerate(series.values.items()):
        middle = 122 + 44 * number
        canvas.text(margin - 12, middle, name, 17, anchor="rm")
        canvas.box(margin, middle - 15, margin + length * value, middle + 15, colour)
        canvas.text(margin + length * value + 10, middle, series.text(name), 16, anchor="lm")
    canvas.line([(margin, 96), (margin, height - 50)])
    return canvas


def lines(named: Mapping[str, Series], width: int, height: int, step: int, **texts: str) -> Canvas:
    """Draw a line chart of several series over the same names, with a grid line every `step`."""
    canvas = Canvas(width, height, **texts)
    top, bottom, left, right = 105, height - 80, 100, width - 185
    names = list(next(iter(named.values())).values)
    highest = -(-max(max(series.values.values()) for series in named.values()) // step) * step
    for value in range(0, int(highest) + 1, step):
        y = bottom - (bottom - top) * value / highest
        canvas.line([(left, y), (right, y)], INK if value == 0 else PALE)
        canvas.text(left - 10, y, f"{value:,}", 16, anchor="rm")
    xs = {name: left + (right - left) * number / (len(names) - 1) for number, name in enumerate(names)}
    for number, name in enumerate(names):
        if number % 2 == 0:
            canvas.text(xs[name], bottom + 22, name, 16)
    for (label, series), colour in zip(named.items(), COLOURS.values(), strict=True):
        points = [(xs[name], bottom - (bottom - top) * value / highest) for name, value in series.values.items()]
        canvas.line(points, colour, 3)
        canvas.text(right + 12, points[-1][1], label, 17, colour, "lm")
    return canvas


def electricity() -> dict[str, Series]:
    """Return Iowa's net generation by source and year, in thousand megawatt hours."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in table("iowa-electricity.csv"):
        found[row["source"]][row["year"][:4]] = float(row["net_generation"])
    return {source: Series(values) for source, values in found.items()}


def generation(year: str) -> Series:
    """Return Iowa's net generation of one year by source."""
    return Series({source: series.values[year] for source, series in electricity().items()})


def rain(year: str) -> Series:
    """Return Seattle's precipitation by month, in millimetres."""
    found = dict.fromkeys(MONTHS, 0.0)
    for row in table("seattle-weather.csv"):
        if row["date"].startswith(year):
            found[MONTHS[int(row["date"][5:7]) - 1]] += float(row["precipitation"])
    return Series(found, digits=1)


def playfair(column: str) -> Series:
    """Return the price of a quarter of wheat or the weekly wages of a good mechanic since 1750, in shillings."""
    found = [row for row in table("wheat.json") if int(row["year"]) >= 1750 and column in row]
    return Series({row["year"]: float(row[column]) for row in found}, digits=1)


def job_changes(year: str) -> Series:
    """Return the monthly change of employment in the United States in one year, in thousands."""
    found = [row for row in table("us-employment.csv") if row["month"].startswith(year)]
    return Series({MONTHS[int(row["month"][5:7]) - 1]: float(row["nonfarm_change"]) for row in found})


def sectors(month: str) -> Series:
    """Return employment in the United States by sector, in thousands, the largest first."""
    (row,) = (row for row in table("us-employment.csv") if row["month"].startswith(month))
    named = {
        "Trade, transport, utilities": "trade_transportation_utilties",  # the table's own spelling
        "Government": "government",
        "Education and health": "education_and_health_services",
        "Professional services": "professional_and_business_services",
        "Leisure and hospitality": "leisure_and_hospitality",
        "Manufacturing": "manufacturing",
        "Financial activities": "financial_activities",
        "Construction": "construction",
        "Other services": "other_services",
        "Information": "information",
        "Mining and logging": "mining_and_logging",
    }
    values = {name: float(row[column]) for name, column in named.items()}
    return Series(dict(sorted(values.items(), key=lambda item: -item[1])))


def draw_all(folder: Path) -> None:
    """Draw and write every chart."""
    folder.mkdir(parents=True, exist_ok=True)
    eia, bls, noaa = "U.S. Energy Information Administration", "U.S. Bureau of Labor Statistics", "NOAA"
    book = "W. Playfair, 1822"
    blue, orange, green = COLOURS.values()
    power, wheat, pay = "thousand megawatt hours", "shillings a quarter", "shillings a week"
    jobs = "Employment by sector, December 2015"
    charts = {
        "iowa": lines(electricity(), 920, 560, 5000, title="Electricity made in Iowa", unit=power, source=eia),
        "wheat": columns(playfair("wheat"), 980, 460, orange, title="Price of wheat", unit=wheat, source=book),
        "wages": columns(playfair("wages"), 900, 420, blue, title="Wages", unit=pay, source=book),
        "sectors-2015": rows(sectors("2015-12"), 760, 270, blue, title=jobs, unit="thousands", source=bls),
    }
    for year in ("2001", "2017"):
        title = f"Electricity made in Iowa, {year}"
        charts[f"iowa-{year}"] = rows(generation(year), 700, 180, green, title=title, unit=power, source=eia)
    for year in ("2009", "2014"):
        title = f"Change of employment, {year}"
        charts[f"jobs-{year}"] = columns(job_changes(year), 820, 480, green, title=title, unit="thousands", source=bls)
    for year in ("2013", "2015"):
        title = f"Rain in Seattle, {year}"
        charts[f"rain-{year}"] = columns(rain(year), 820, 440, blue, title=title, unit="millimetres", source=noaa)
    for name, canvas in charts.items():
        canvas.save(folder / f"{name}.png")


def record(*turns: tuple[str, str, str]) -> dict[str, Any]:
    """Return a conversation made of (names of the charts shown, question, answer) turns."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for names, question, answer in turns:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": f"charts/{name}.png"}} for name in names.split()
        ]
        parts.append({"type": "text", "text": question})
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def records() -> list[dict[str, Any]]:
    """Return every conversation, with answers computed from the tables."""
    made = electricity()
    before, after = generation("2001"), generation("2017")
    growth = {source: after.values[source] - before.values[source] for source in made}
    (shrunk,) = (source for source in made if growth[source] < 0)
    (always_first,) = {generation(year).largest() for year in made["Nuclear Energy"].values}
    renewable, nuclear = made["Renewables"].values, made["Nuclear Energy"].values
    overtaking = next(year for year in renewable if renewable[year] > nuclear[year])
    wheat, wages = playfair("wheat"), playfair("wages")
    bad_year, good_year = job_changes("2009"), job_changes("2014")
    lost = -bad_year.values[bad_year.smallest()]
    by_sector = sectors("2015-12")
    rains = {year: rain(year) for year in ("2013", "2015")}
    wetter = max(rains, key=lambda year: sum(rains[year].values.values()))
    return [
        record(
            ("iowa", "Which source made the most electricity in every year?", always_first),
            ("", "And which one grew the most between 2001 and 2017?", max(growth, key=growth.__getitem__)),
        ),
        record(("iowa", "In which year did renewables first make more than nuclear energy?", overtaking)),
        record(
            ("iowa-2001", "How much came from renewables?", before.text("Renewables")),
            ("", "And from nuclear energy?", before.text("Nuclear Energy")),
        ),
        record(("iowa-2017", "How much came from fossil fuels?", after.text("Fossil Fuels"))),
        record(("iowa-2001 iowa-2017", "Which source made less in the second year than in the first?", shrunk)),
        record(
            ("wheat", "In which year was wheat the dearest?", wheat.largest()),
            ("", "What did a quarter of it cost then?", wheat.text(wheat.largest())),
            ("", "And ten years later?", wheat.text(f"{int(wheat.largest()) + 10}")),
        ),
        record(("wheat", "In how many of these years did wheat cost more than 50 shillings?", f"{wheat.above(50)}")),
        record(("wages", "What was earned in a week of 1780?", wages.text("1780"))),
        record(
            ("wheat", "What did wheat cost in 1800?", wheat.text("1800")),
            ("wages", "And what was earned in a week of that year?", wages.text("1800")),
        ),
        record(
            ("jobs-2009", "In which month were the most jobs lost?", bad_year.smallest()),
            ("", "How many thousand were lost?", f"{lost:.0f}"),
        ),
        record(("jobs-2009", "In how many months did employment grow?", f"{bad_year.above(0)}")),
        record(("jobs-2014", "In which month did employment grow the most?", good_year.largest())),
        record(
            ("sectors-2015", "Which sector employed the fewest people?", by_sector.smallest()),
            ("", "How many thousand worked in construction?", by_sector.text("Construction")),
        ),
        record(("sectors-2015", "How many sectors employed more than 10 million?", f"{by_sector.above(10_000)}")),
        record(
            ("rain-2013", "Which month was the wettest?", rains["2013"].largest()),
            ("rain-2015", "And in this year?", rains["2015"].largest()),
        ),
        record(("rain-2013 rain-2015", "Which of the two years had more rain?", wetter)),
    ]


def main() -> None:
    """Draw the charts and write the conversations."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    draw_all(folder / "charts")
    lines_of_json = [json.dumps(one) + "\n" for one in records()]
    (folder / "messages.jsonl").write_text("".join(lines_of_json), encoding="utf-8")
    print(f"{len(lines_of_json)} conversations in {folder / 'messages.jsonl'}")


if __name__ == "__main__":
    main()
