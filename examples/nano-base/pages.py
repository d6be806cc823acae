"""Generated pages of print: running text, forms, tables and boxes, with questions and their answers."""

from __future__ import annotations

import random
import string
from collections import Counter
from pathlib import Path

import fonts
from painter import CELL, SIDE, Difficulty, Draw, Page, Painter, Question, Run, fit
from PIL import Image
from texts import DAYS, MONTHS, date, number, value, word

__all__ = ["CELL", "SIDE", "Difficulty", "Draw", "Page", "Question", "Run"]


def lines_page(rng: random.Random, width: int, height: int, files: list[Path], hard: Difficulty) -> Page:
    """Draw running text in one or two columns; ask what follows a word."""
    painter = Painter(rng, width, height, files, hard)
    columns = 2 if width / painter.size > 19 and rng.random() < 0.35 else 1
    left, top, leading = rng.uniform(2, 24), rng.uniform(0, 26), painter.leading()
    changing = rng.random() < 0.3
    for column in range(columns):
        x, y = left + column * width / columns, top
        room = width / columns - (left if columns == 1 else 14) - 2
        while y + painter.size * 1.15 < height:
            if changing and columns == 1:
                painter.font_path = str(rng.choice(files))
            words: list[str] = []
            for _ in range(30):
                following = word(rng) if rng.random() < 0.65 else value(rng)
                if not painter.can_draw(following):
                    continue
                if painter.length(" ".join([*words, following])) > room:
                    break
                words.append(following)
            if words:
                painter.text(x, y, " ".join(words))
            y += leading
    count = Counter(word for run in painter.page.runs for word in run.text.split(" "))
    for index, run in enumerate(painter.page.runs):
        words = run.text.split(" ")
        for at in range(len(words) - 1):
            if count[words[at]] == 1:
                start = len(" ".join(words[: at + 1])) + 1
                until = start + len(" ".join(words[at + 1 : at + 4]))
                spans, rest = ((index, start, until),), run.text[start:until]
                question = Question(f"Read on from {words[at]}.", rest, "after", spans)
                painter.page.questions.append(question)
    return painter.finish()


def _ask(rng: random.Random, subject: str) -> str:
    return rng.choice(["What is the {}?", "What is {}?", "{}?", "Read the {}.", "Give the {}.", "Find {}."]).format(
        subject
    )


def form_page(rng: random.Random, width: int, height: int, files: list[Path], hard: Difficulty) -> Page:
    """Draw keys and values, aligned or after colons, with or without rules; ask for a value or the form as JSON."""
    painter = Painter(rng, width, height, files, hard)
    style = rng.randint(0, 3)
    left, top, leading = rng.uniform(4, 24), rng.uniform(2, 24), painter.leading()
    columns = 2 if width / painter.size > 26 and rng.random() < 0.4 else 1
    used: set[str] = set()
    keys: list[tuple[str, int]] = []
    if rng.random() < 0.3:
        title = fit(painter, width - left - 4, lambda rng: f"{word(rng)} {word(rng)}")
        painter.text(left, top, title) if title else None
        top += leading
    for column in range(columns):
        x, y = left + column * width / columns, top
        room = width / columns - left - 4
        values_at = x + room * rng.uniform(0.40, 0.55)
        while y + painter.size * 1.15 < height:
            wide = (values_at - x if style else room * 0.6) - 4
            key = fit(painter, wide, lambda rng: " ".join(word(rng) for _ in range(rng.choice([1, 1, 1, 2]))))
            start = values_at if style else x + painter.length(key + ": ")
            entry = fit(painter, x + room - start, value)
            if key and entry and key.lower() not in used:
                painter.text(x, y, key + (":" if style in (0, 1) else ""))
                run = painter.text(start, y, entry)
                used.add(key.lower())
                if style == 2:
                    painter.line(x + painter.length(key) + 4, y + painter.size, start - 4, y + painter.size)
                elif style == 3:
                    painter.line(x, y + painter.size * 1.25, x + room, y + painter.size * 1.25)
                painter.ask(_ask(rng, key), "field", run)
                keys.append((painter.page.runs[run - 1].text.rstrip(":"), run))
            y += leading
    for at in range(0, len(keys), 3):
        some = keys[at : at + 3]
        answer, spans = "{", []
        for key, run in some:
            text = painter.page.runs[run].text
            answer += (", " if spans else "") + f'"{key}": "{text}"'
            spans.append((run, 0, len(text)))
        if '"' not in "".join(painter.page.runs[run].text + key for key, run in some):
            names = ", ".join(key for key, _ in some)
            painter.page.questions.append(Question(f"Give {names} as JSON.", answer + "}", "json", tuple(spans)))
    return painter.finish()


def _row_label(rng: random.Random, style: int, index: int) -> str:
    """Return a label for a table's row in one of six styles."""
    month, day = MONTHS[(index // 28 + style) % 12], index % 28 + 1
    return [
        f"{month} {day}",
        f"{day} {month}",
        MONTHS[index % 12],
        f"{DAYS[index % 7]} {day}",
        date(rng),
        word(rng),
    ][style]


_CELL_QUESTIONS = (
    "{c} of {r}?",
    "{r}: {c}?",
    "What is the {c} of {r}?",
    "What is the {c} for {r}?",
    "{c} in row {r}?",
    "What was the {c} on {r}?",
    "{r}, {c}?",
)


def table_page(rng: random.Random, width: int, height: int, files: list[Path], hard: Difficulty) -> Page:
    """Draw a table with a header row and labelled rows; ask for a cell by row and column."""
    painter = Painter(rng, width, height, files, hard)
    leading, y = painter.leading(), rng.uniform(2, 20)
    if rng.random() < 0.4:
        title = fit(painter, width - 20, lambda rng: f"{word(rng)} {word(rng)} {value(rng)}")
        painter.text(rng.uniform(4, 16), y, title) if title else None
        y += leading
    top = y
    columns = max(2, min(rng.randint(2, 6), int(width / (painter.size * 4.2))))
    first = rng.uniform(1.0, 1.5)  # width of the label column, in columns
    step = (width - 8) / (columns - 1 + first)
    lefts = [4.0, *(4 + (first + at) * step for at in range(columns))]
    style, start = rng.randint(0, 5), rng.randint(0, 27)
    all_numbers, ruled, right = rng.random() < 0.4, rng.random(), rng.random() < 0.4

    def place(text: str, column: int, at: float) -> int:
        x = lefts[column] + 4
        if right and column:
            x = lefts[column + 1] - 5 - painter.length(text)
        return painter.text(x, at, text)

    headers: list[str] = []
    for column in range(columns):
        header = fit(painter, lefts[column + 1] - lefts[column] - 9, word, 20)
        if not header or header.lower() in (one.lower() for one in headers):
            header = string.ascii_uppercase[column] + str(rng.randint(1, 9))
        headers.append(header)
        place(header, column, y)
    y += leading
    if ruled < 0.7:
        at = y - (leading - painter.size * 1.15) / 2
        painter.line(4, at, width - 4, at, width=rng.choice([1, 1, 2]))
    labels: set[str] = set()
    for index in range(30):
        if y + painter.size * 1.15 > height:
            break
        label = _row_label(rng, style, start + index)
        if painter.length(label) > lefts[1] - 12 or label.lower() in labels:
            label = fit(painter, lefts[1] - 12, word)
        if not label or label.lower() in labels:
            continue
        labels.add(label.lower())
        place(label, 0, y)
        for column in range(1, columns):
            room = lefts[column + 1] - lefts[column] - 9
            entry = fit(painter, room, number if all_numbers else value) or str(rng.randint(0, 9))
            run = place(entry, column, y)
            painter.ask(rng.choice(_CELL_QUESTIONS).format(c=headers[column], r=label), "cell", run)
        y += leading
        if ruled < 0.35:
            at = y - (leading - painter.size * 1.15) / 2
            painter.line(4, at, width - 4, at)
    if ruled < 0.25:
        for column in range(1, columns):
            painter.line(lefts[column], top, lefts[column], y)
    return painter.finish()


def boxed_page(rng: random.Random, width: int, height: int, files: list[Path], hard: Difficulty) -> Page:
    """Draw keys and values with one character to a box of 28 pixels, as on official forms."""
    painter = Painter(rng, width, height, files, hard)
    painter.size, painter.pitch = rng.randint(24, 34), float(CELL)
    ascent, descent = fonts.load(painter.font_path, painter.size).getmetrics()
    across = width // CELL
    for row in range(0, height // CELL, rng.choice([1, 2]) if painter.size < 30 else 2):
        key = fit(painter, CELL * (across * 0.6), word)
        column = rng.choice([0, 0, 1])
        start = column + len(key) + 1
        entry = fit(painter, CELL * (across - start), value)
        y = (row + 0.5) * CELL - 0.59 * ascent - 0.15 * descent
        if key and entry:
            painter.text(column * CELL, y, key)
            painter.ask(_ask(rng, key), "field", painter.text(start * CELL, y, entry))
    return painter.finish()


KINDS: dict[str, tuple[Draw, float]] = {
    "lines": (lines_page, 0.45),
    "form": (form_page, 0.17),
    "table": (table_page, 0.30),
    "boxed": (boxed_page, 0.08),
}


QUESTION_SHARES = (0.10, 0.52, 0.28, 0.10)  # of the kinds, for pages that are asked about


def dense_page(rng: random.Random, files: list[Path], hard: Difficulty) -> Page:
    """Draw one crop of any kind, for the vision tower alone."""
    draw = rng.choices([draw for draw, _ in KINDS.values()], [share for _, share in KINDS.values()])[0]
    return draw(rng, SIDE, SIDE, files, hard)


def stretched(rng: random.Random, draw: Draw, width: int, height: int, files: list[Path], hard: Difficulty) -> Page:
    """Draw a page; make the print of every second one narrower or wider, as more fonts would."""
    if rng.random() < 0.5 or draw is boxed_page or not hard.drawn:
        return draw(rng, width, height, files, hard)
    drawn_width = round(width / rng.uniform(0.82, 1.25))
    page = draw(rng, drawn_width, height, files, hard)
    page.image = page.image.resize((width, height), Image.Resampling.BICUBIC)
    factor = width / drawn_width
    page.runs = [Run(run.text, tuple(edge * factor for edge in run.edges), run.middle) for run in page.runs]
    return page


def stretched_page(rng: random.Random, files: list[Path], hard: Difficulty) -> Page:
    """Draw a dense page with print that may be narrower or wider than its font."""
    draw = rng.choices([draw for draw, _ in KINDS.values()], [share for _, share in KINDS.values()])[0]
    return stretched(rng, draw, SIDE, SIDE, files, hard)


GRIDS = {(1, 1): 50, (1, 2): 20, (2, 1): 20, (2, 2): 4, (1, 3): 3, (3, 1): 3}


def question_page(
    rng: random.Random, grid: tuple[int, int], files: list[Path], hard: Difficulty, printed: float = 1.0
) -> Page:
    """Draw a page that becomes `grid` crops at hd_num = rows * cols, at its final size or close to it.

    `printed` is the share of its height that is printed; the rest is blank paper.
    """
    rows, cols = grid
    # The longer side decides the layout. The shorter one must leave room, or the page gets a smaller grid.
    longer, shorter = max(rows, cols), min(rows, cols)
    side = SIDE * longer * rng.uniform(0.97, 1.0)
    other = side * shorter / longer * rng.uniform(0.86, 0.985)
    width, height = (int(side), int(other)) if cols >= rows else (int(other), int(side))
    draw = rng.choices([draw for draw, _ in KINDS.values()], QUESTION_SHARES)[0]
    page = stretched(rng, draw, width, max(48, int(height * printed)), files, hard)
    if page.image.height < height:
        sheet = Image.new("RGB", (width, height), page.image.getpixel((0, page.image.height - 1)))
        sheet.paste(page.image)
        page.image = sheet
    return page
