"""Generated pages of print: an image, where each character stands, and questions with their answers."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field
from pathlib import Path

import fonts
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WORDS = (
    "account address age agent amount area balance bill black blue box branch brown buyer card case cash center "
    "charge check city class client code color cost country county credit customer date day debit deep depth "
    "district dose due east end entry exit fee field file final first fish flight floor form from front gate "
    "green grid group guest hall head heat height hour house income index item job key kind label land last lead "
    "left length level limit line list load lot low main mark mass max mean member method min mode model month "
    "name net night north note number office order owner page paid part party paper path peak place plan plant "
    "point port power price rate ratio red region rent result right river road room route row sale sample score "
    "sea seat section seller serial shift ship shop side sign site size slot soil south speed stage start state "
    "station status step stock store street style sum supply table task tax team temp term time title tool total "
    "town track train tree trip type unit user value vendor view volume ward water week weight west white width "
    "wind wood yard year zone apple bread clear cloud drizzle fog rain snow sun warm cold dry wet open closed yes no"
).split()
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnprstvwz"
PRINTABLE = string.ascii_letters + string.digits + ".,:;-/()%$#&'+*=<>[]_@!?\"°€"
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()

CELL = 28  # pixels a merged patch covers


@dataclass
class Page:
    """An image, its characters' boxes in the image's pixels, and (question, answer, kind) triples."""

    image: Image.Image
    boxes: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    questions: list[tuple[str, str, str]] = field(default_factory=list)


def invented_word(rng: random.Random) -> str:
    """A word that is in no list, so that it has to be read."""
    syllables = rng.randint(1, 3)
    word = "".join(
        rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice(["", "", rng.choice(_CONSONANTS)])
        for _ in range(syllables)
    )
    return word


def word(rng: random.Random) -> str:
    """A listed or invented word, in one of the usual cases."""
    chosen = rng.choice(WORDS) if rng.random() < 0.5 else invented_word(rng)
    roll = rng.random()
    return chosen if roll < 0.55 else chosen.capitalize() if roll < 0.85 else chosen.upper()


def value(rng: random.Random) -> str:
    """Something that stands in a cell or a field."""
    roll = rng.random()
    if roll < 0.20:
        return str(rng.randint(0, 10 ** rng.randint(1, 5)))
    if roll < 0.45:
        return f"{rng.choice(['', '', '', '-'])}{rng.randint(0, 99)}.{rng.randint(0, 9)}"
    if roll < 0.53:
        return f"{rng.choice(['$', '€', ''])}{rng.randint(0, 9999)}.{rng.randint(0, 99):02d}"
    if roll < 0.58:
        return f"{rng.randint(0, 100)}%"
    if roll < 0.64:
        return f"{rng.randint(1950, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if roll < 0.68:
        return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
    if roll < 0.71:
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if roll < 0.75:
        return "".join(rng.choice(string.ascii_uppercase) for _ in range(2)) + f"-{rng.randint(100, 9999)}"
    if roll < 0.95:
        return word(rng)
    return f"{word(rng)} {word(rng)}"


def row_label(rng: random.Random, style: int, index: int) -> str:
    """Labels of a table's rows, in one of five styles."""
    if style == 0:
        return f"{rng.choice(MONTHS)} {index + 1}"
    if style == 1:
        return f"{index + 1}"
    if style == 2:
        return f"{MONTHS[index % 12]}"
    if style == 3:
        return f"{rng.randint(1, 12)}/{rng.randint(1, 28)}"
    return word(rng)


class Painter:
    """Draws text on a page and remembers every character's box."""

    def __init__(self, rng: random.Random, width: int, height: int, font_files: list[Path]) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.font_path = str(rng.choice(font_files))
        light, dark = rng.randint(225, 255), rng.randint(0, 90)
        paper = tuple(min(255, light + rng.randint(-12, 12)) for _ in range(3))
        ink = tuple(min(255, max(0, dark + rng.randint(-40, 40))) for _ in range(3))
        if rng.random() < 0.08:
            paper, ink = ink, paper
        self.paper, self.ink = paper, ink
        self.pitch: float | None = None  # pixels from one character to the next; None for the font's own
        self.page = Page(Image.new("RGB", (width, height), paper))
        self.draw = ImageDraw.Draw(self.page.image)

    def length(self, text: str, size: int) -> float:
        """Width of the text in pixels."""
        if self.pitch is not None:
            return self.pitch * len(text)
        return sum(fonts.advance(self.font_path, size, c) for c in text)

    def text(self, x: float, y: float, text: str, size: int) -> None:
        """Draw with the line's top at y and record the boxes."""
        font = fonts.load(self.font_path, size)
        if self.pitch is None:
            self.draw.text((x, y), text, font=font, fill=self.ink)
        ascent, descent = font.getmetrics()
        for character in text:
            step = self.length(character, size)
            if self.pitch is not None:
                middle = x + (step - fonts.advance(self.font_path, size, character)) / 2
                self.draw.text((middle, y), character, font=font, fill=self.ink)
            if character != " ":
                self.page.boxes.append((character, x, y + 0.18 * ascent, x + step, y + ascent + 0.3 * descent))
            x += step

    def line(self, *points: float) -> None:
        """A thin rule."""
        self.draw.line(points, fill=self.ink, width=1)

    def finish(self) -> Page:
        """Sometimes blur or add grain, as a scan would."""
        if self.rng.random() < 0.12:
            self.page.image = self.page.image.filter(ImageFilter.GaussianBlur(self.rng.uniform(0.3, 0.8)))
        if self.rng.random() < 0.15:
            pixels = np.asarray(self.page.image).astype(np.int16)
            grain = np.random.default_rng(self.rng.getrandbits(32)).normal(0, self.rng.uniform(2, 9), pixels.shape)
            self.page.image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
        return self.page


def characters_page(rng: random.Random, side: int, font_files: list[Path]) -> Page:
    """A crop full of random text in mixed sizes, for the vision tower alone."""
    painter = Painter(rng, side, side, font_files)
    y = rng.uniform(-8.0, 14.0)
    while y < side:
        if rng.random() < 0.3:
            painter.font_path = str(rng.choice(font_files))
        size = rng.randint(13, 38)
        x = rng.uniform(-10.0, 40.0)
        while x < side:
            roll = rng.random()
            if roll < 0.25:
                text = "".join(rng.choice(PRINTABLE) for _ in range(rng.randint(1, 8)))
            else:
                text = word(rng) if roll < 0.6 else value(rng)
            painter.text(x, y, text, size)
            x += painter.length(text, size) + size * rng.uniform(0.2, 1.6)
            if rng.random() < 0.06:
                painter.line(x, y, x, y + size * 1.3)
        y += size * rng.uniform(1.05, 1.9)
        if rng.random() < 0.15:
            painter.line(0, y, side, y)
            y += 2
    return painter.finish()


def _ask(rng: random.Random, subject: str) -> str:
    return rng.choice(["What is the {}?", "What is {}?", "{}?", "Read the {}.", "Give the {}.", "Find {}."]).format(
        subject
    )


def form_page(
    rng: random.Random, width: int, height: int, font_files: list[Path], size: int, pitch: float | None
) -> Page:
    """Keys with their values: aligned, with colons, dotted or ruled."""
    painter = Painter(rng, width, height, font_files)
    painter.pitch = pitch
    style = rng.randint(0, 3)
    left, top, leading = rng.uniform(6, 30), rng.uniform(4, 26), size * rng.uniform(1.25, 2.0)
    columns = 2 if width > 560 and rng.random() < 0.4 else 1
    used: set[str] = set()
    for column in range(columns):
        x, y = left + column * width / columns, top
        room = width / columns - left - 6
        column_of_values = x + room * rng.uniform(0.42, 0.55)
        while y + size * 1.3 < height:
            key = " ".join(word(rng) for _ in range(rng.choice([1, 1, 1, 2])))
            entry = value(rng)
            aligned = style in (1, 2, 3)
            start = column_of_values if aligned else x + painter.length(key + ": ", size)
            fits = x + painter.length(key + ":", size) < start + 1 and start + painter.length(entry, size) < x + room
            if fits and key.lower() not in used:
                used.add(key.lower())
                painter.text(x, y, key + (":" if style in (0, 1) else ""), size)
                painter.text(start, y, entry, size)
                if style == 2:
                    painter.line(x + painter.length(key, size) + 4, y + size, start - 4, y + size)
                elif style == 3:
                    painter.line(x, y + size * 1.25, x + room, y + size * 1.25)
                painter.page.questions.append((_ask(rng, key), entry, "field"))
                y += leading
            elif rng.random() < 0.1:
                y += leading
    return painter.finish()


def table_page(
    rng: random.Random, width: int, height: int, font_files: list[Path], size: int, pitch: float | None
) -> Page:
    """A table: a header row, labelled rows; each question names a row and a column."""
    painter = Painter(rng, width, height, font_files)
    painter.pitch = pitch
    leading = size * rng.uniform(1.3, 1.9)
    y = top = rng.uniform(4, 24)
    if rng.random() < 0.4:
        painter.text(rng.uniform(6, 60), y, f"{word(rng)} {word(rng)} {value(rng)}", size)
        y = top = y + leading * 1.2
    columns = max(2, min(rng.randint(2, 6), int(width / (5.6 * pitch if pitch else size * 4.6))))
    rows = max(1, min(rng.randint(3, 12), int((height - y) / leading) - 1))
    step = (width - 12) / columns
    label_style, cell_style = rng.randint(0, 4), rng.random()
    headers: list[str] = []
    while len(headers) < columns:
        header = word(rng) if len(headers) else rng.choice(["date", "item", "no", "name", word(rng)])
        if painter.length(header, size) < step - 8 and header.lower() not in map(str.lower, headers):
            headers.append(header)
        elif rng.random() < 0.05:
            headers.append(f"{string.ascii_uppercase[len(headers)]}{rng.randint(1, 9)}")
    ruled, right = rng.random(), rng.random() < 0.4

    def cell(text: str, column: int, at: float) -> None:
        x = 6 + column * step + 4
        if right and column:
            x = 6 + (column + 1) * step - 4 - painter.length(text, size)
        painter.text(x, at, text, size)

    for column, header in enumerate(headers):
        cell(header, column, y)
    y += leading
    if ruled < 0.7:
        painter.line(6, y - leading * 0.12, width - 6, y - leading * 0.12)
    labels: set[str] = set()
    for index in range(rows):
        label = row_label(rng, label_style, index)
        for _ in range(20):
            if label.lower() not in labels and painter.length(label, size) < step - 8:
                break
            label = row_label(rng, 4, index)
        if label.lower() in labels or painter.length(label, size) >= step - 8:
            continue
        labels.add(label.lower())
        cell(label, 0, y)
        for column in range(1, columns):
            for _ in range(12):
                entry = f"{rng.randint(0, 99)}.{rng.randint(0, 9)}" if cell_style < 0.35 else value(rng)
                if painter.length(entry, size) < step - 8:
                    break
            else:
                entry = str(rng.randint(0, 9))
            cell(entry, column, y)
            header = headers[column]
            question = rng.choice(
                [
                    "{c} of {r}?",
                    "{r}: {c}?",
                    "What is the {c} of {r}?",
                    "What is the {c} for {r}?",
                    "{c} in row {r}?",
                    "What was the {c} on {r}?",
                    "{r}, {c}?",
                ]
            ).format(c=header, r=label)
            painter.page.questions.append((question, entry, "cell"))
        if ruled < 0.35:
            painter.line(6, y + leading * 0.88, width - 6, y + leading * 0.88)
        y += leading
    if ruled < 0.2:
        for column in range(1, columns):
            painter.line(6 + column * step, top, 6 + column * step, y)
    return painter.finish()


def lines_page(
    rng: random.Random, width: int, height: int, font_files: list[Path], size: int, pitch: float | None
) -> Page:
    """Running text: read a line by number, or read on after two words."""
    painter = Painter(rng, width, height, font_files)
    painter.pitch = pitch
    x, y, leading = rng.uniform(6, 30), rng.uniform(4, 24), size * rng.uniform(1.25, 1.9)
    lines: list[list[str]] = []
    while y + size * 1.2 < height:
        words: list[str] = []
        for _ in range(rng.randint(2, 9)):
            following = word(rng) if rng.random() < 0.75 else value(rng)
            if painter.length(" ".join([*words, following]), size) < width - x - 6:
                words.append(following)
        if words:
            painter.text(x, y, " ".join(words), size)
            lines.append(words)
        y += leading
    for number, words in enumerate(lines, 1):
        painter.page.questions.append((f"Read line {number}.", " ".join(words), "line"))
        if len(words) > 2:
            at = rng.randint(1, len(words) - 1)
            painter.page.questions.append((f"What follows {words[at - 1]}?", " ".join(words[at : at + 2]), "after"))
    return painter.finish()


def easy_page(rng: random.Random, font_files: list[Path], pitch: float | None) -> Page:
    """Lines of a key and what belongs to it, on one crop, to be read whole, from a word on, or by key.

    With a pitch of 28 every character stands in a cell of its own, as in a text of tokens: reading is learned there
    first, then with narrower pitches, then with the fonts' own.
    """
    painter = Painter(rng, 336, 336 if pitch == CELL else int(336 * rng.uniform(0.86, 0.985)), font_files)
    painter.pitch = pitch
    size = rng.randint(26, 38) if pitch is None or pitch > 22 else rng.randint(22, 32)
    ascent, descent = fonts.load(painter.font_path, size).getmetrics()
    centre = (1.18 * ascent + 0.3 * descent) / 2  # of a character's box, below the line's top
    if pitch == CELL:
        x, y, row = CELL * rng.randint(0, 2), CELL * rng.randint(0, 2) + CELL / 2 - centre, CELL
        row *= rng.choice([1, 1, 2]) if size < 30 else 2
    else:
        x, y, row = rng.uniform(4, 40), rng.uniform(2, 40), size * rng.uniform(1.2, 1.9)
    read: list[str] = []
    keys: set[str] = set()
    for _ in range(rng.choice([1, 2, 3, 4, 6, 9, 12])):
        words: list[str] = []
        for index in range(rng.choice([1, 2, 2, 2, 3, 4])):
            for _ in range(6):
                following = word(rng) if rng.random() < (0.8 if index == 0 else 0.4) else value(rng)
                if x + painter.length(" ".join([*words, following]), size) <= painter.width - 2:
                    words.append(following)
                    break
        if not words or y + centre + size / 2 > painter.height:
            break
        painter.text(x, y, " ".join(words), size)
        y += row
        read += words
        if len(words) > 1 and words[0].lower() not in keys:
            painter.page.questions.append((_ask(rng, words[0]), " ".join(words[1:]), "field"))
        keys.add(words[0].lower())
    for at in range(1, len(read)):
        painter.page.questions.append((f"What follows {read[at - 1]}?", " ".join(read[at : at + 2]), "after"))
    rng.shuffle(painter.page.questions)
    painter.page.questions[6:] = []
    if read:
        painter.page.questions.append(("Read the page.", " ".join(read), "page"))
    return painter.finish()


def question_page(
    rng: random.Random, grid: tuple[int, int], font_files: list[Path], pitch: float | None = None
) -> Page:
    """A page whose layout at hd_num = rows * cols is likely to be `grid`, at its final scale or larger."""
    rows, cols = grid
    scale = rng.choice([1.0, 1.0, 1.0, 1.25, 0.9]) if pitch is None else 1.0
    # The longer side decides the layout; the shorter one must not be too long for it, or the page falls to a smaller
    # grid.
    longer, shorter = max(rows, cols), min(rows, cols)
    side = 336 * longer * scale * rng.uniform(0.97, 1.0)
    other = side * shorter / longer * rng.uniform(0.86, 0.985)
    width, height = (int(side), int(other)) if cols >= rows else (int(other), int(side))
    size = max(12, int(rng.triangular(16, 34, 23) * scale))
    kind = rng.choices([form_page, table_page, lines_page], weights=[35, 45, 20])[0]
    if pitch is not None:
        size = rng.randint(24, 34)
    return kind(rng, width, height, font_files, size, pitch)
