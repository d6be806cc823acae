"""Draw text on a page and record where every character is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import fonts
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CELL = 28  # pixels that one image token covers
SIDE = 336  # pixels of a crop


@dataclass(frozen=True)
class Run:
    """A piece of text drawn at one place.

    Attributes:
        text: As drawn.
        edges: Left edge of each character, then the right edge of the last, in pixels of the page.
        middle: Vertical centre of the text, in pixels of the page.
    """

    text: str
    edges: tuple[float, ...]
    middle: float


NEAR = 0.2  # of a cell: a run whose middle is this close to a row's edge is also given to the row beyond, if empty


def rows_of(middles: list[float]) -> list[tuple[int, ...]]:
    """Return the rows of cells that show each run, given the runs' middles in cells: its own, and perhaps the next.

    Which of two rows a run on their border belongs to cannot be seen, so both get its text. A row with a run of its
    own gets no other.
    """
    own = [math.floor(middle) for middle in middles]
    taken = set(own)
    nearest: dict[int, tuple[float, float]] = {}  # empty row: distance and middle of the run that gets it
    for middle, row in zip(middles, own, strict=True):
        below = middle - row > 0.5
        beyond, distance = (row + 1, row + 1 - middle) if below else (row - 1, middle - row)
        if distance < NEAR and beyond not in taken:
            nearest[beyond] = min(nearest.get(beyond, (1.0, 0.0)), (distance, middle))
    found = []
    for middle, row in zip(middles, own, strict=True):
        beyond = row + 1 if middle - row > 0.5 else row - 1
        also = beyond in nearest and abs(nearest[beyond][1] - middle) < 0.1
        found.append((row, beyond) if also else (row,))
    return found


@dataclass(frozen=True)
class Question:
    """A question about a page; `spans` are the pieces of runs, in order, that the answer copies."""

    text: str
    answer: str
    kind: str
    spans: tuple[tuple[int, int, int], ...] = ()  # (run, first character, last + 1)


@dataclass
class Page:
    """An image, its runs of text, and questions about it."""

    image: Image.Image
    runs: list[Run] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class Difficulty:
    """How hard pages are: 0 gives large clean print, 1 every size down to 12 pixels, with noise.

    `drawn=False` lays pages out without drawing them, for stages that need only the positions of the characters.
    """

    level: float
    drawn: bool = True

    def size(self, rng: random.Random) -> int:
        """Draw a font size in pixels, so that capitals and digits with their line are 12 to 36 pixels high."""
        smallest = 22 - 10 * self.level
        return round(rng.triangular(smallest, 34, smallest + 8))


class Painter:
    """Draws text on a page and records where every character is."""

    def __init__(self, rng: random.Random, width: int, height: int, files: list[Path], hard: Difficulty) -> None:
        self.rng, self.width, self.height, self.hard = rng, width, height, hard
        self.font_path = str(rng.choice(files))
        self.size = hard.size(rng)
        self.pitch: float | None = None  # pixels from one character to the next; None for the font's own
        light, dark = rng.randint(225, 255), rng.randint(0, 40 + int(60 * hard.level))
        paper = tuple(min(255, light + rng.randint(-12, 12)) for _ in range(3))
        ink = tuple(min(255, max(0, dark + rng.randint(-40, 40))) for _ in range(3))
        if rng.random() < 0.06 * hard.level:
            paper, ink = ink, paper
        self.paper, self.ink = paper, ink
        self.page = Page(Image.new("RGB", (width, height), paper))
        self.draw = ImageDraw.Draw(self.page.image)

    def leading(self) -> float:
        """Draw a line pitch of at least a cell, so that no cell holds the centres of two lines."""
        return max(float(CELL), self.size * 1.25) * self.rng.uniform(1.0, 1.35)

    def length(self, text: str) -> float:
        """Return the width of a text in pixels."""
        if self.pitch is not None:
            return self.pitch * len(text)
        return sum(fonts.advance(self.font_path, self.size, c) for c in text)

    def can_draw(self, text: str) -> bool:
        """Return whether the font has every character of a text."""
        return all(fonts.has(self.font_path, character) for character in text if character != " ")

    def text(self, x: float, y: float, text: str) -> int:
        """Draw a text with the top of its line at `y`; return the index of its run."""
        font = fonts.load(self.font_path, self.size)
        ascent, descent = font.getmetrics()
        if self.pitch is None:
            if self.hard.drawn:
                self.draw.text((x, y), text, font=font, fill=self.ink)
            steps = [fonts.advance(self.font_path, self.size, c) for c in text]
        else:
            steps = [self.pitch] * len(text)
            for at, character in enumerate(text if self.hard.drawn else ""):
                middle = (self.pitch - fonts.advance(self.font_path, self.size, character)) / 2
                if character != " ":  # Clear Sans has a space that cannot be drawn
                    self.draw.text((x + at * self.pitch + middle, y), character, font=font, fill=self.ink)
        edges = tuple(accumulate(steps, initial=x))
        self.page.runs.append(Run(text, edges, y + 0.59 * ascent + 0.15 * descent))
        return len(self.page.runs) - 1

    def line(self, *points: float, width: int = 1) -> None:
        """Draw a rule."""
        self.draw.line(points, fill=self.ink, width=width)

    def ask(self, text: str, kind: str, *runs: int) -> None:
        """Record a question that whole runs answer."""
        texts = [self.page.runs[run].text for run in runs]
        spans = tuple((run, 0, len(part)) for run, part in zip(runs, texts, strict=True))
        self.page.questions.append(Question(text, " ".join(texts), kind, spans))

    def finish(self) -> Page:
        """Blur some pages and add grain to some, as a scan does; return the page."""
        if not self.hard.drawn:
            return self.page
        if self.rng.random() < 0.15 * self.hard.level:
            self.page.image = self.page.image.filter(ImageFilter.GaussianBlur(self.rng.uniform(0.3, 0.8)))
        if self.rng.random() < 0.25 * self.hard.level:
            pixels = np.asarray(self.page.image).astype(np.float32)
            noise = np.random.default_rng(self.rng.getrandbits(32)).standard_normal(pixels.shape, dtype=np.float32)
            pixels += noise * self.rng.uniform(2, 9)
            self.page.image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        return self.page


Draw = Callable[[random.Random, int, int, list[Path], Difficulty], Page]


def fit(painter: Painter, room: float, draw: Callable[[random.Random], str], tries: int = 8) -> str:
    """Return a text that is not wider than `room` and whose characters the font has, or the empty string."""
    for _ in range(tries):
        text = draw(painter.rng)
        if painter.length(text) <= room and painter.can_draw(text):
            return text
    return ""
