"""Pages as the decoder gets them: ideal cells, questions with the cells that hold their answers, and batches."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pages
import sentencepiece
import torch
from network import cut, place, plan
from painter import rows_of
from tower import CLASSES, FRAMES, GAP, NUMBER

END, START = "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"
OVERVIEW = 12 * 13 + 1  # image tokens before the crops' own: the global view with its newlines, and a separator
BLANK, NEWLINE, SEPARATOR = (FRAMES * len(CLASSES) + at for at in range(3))
PADDING = SEPARATOR + 1
QUESTIONS = 12  # of a page


@dataclass
class Asked:
    """One question after a page: token ids, labels, and for each label the cells that hold its character."""

    ids: list[int]
    labels: list[int]
    cells: list[tuple[int, ...]]


@dataclass
class Sample:
    """A page as the decoder gets it.

    Attributes:
        rows: Which of the image's tokens are given, in order.
        contents: int64 [tokens, 6] entries of the table of ideal cells for each of them.
        crops: uint8 [crops, 3, 336, 336], or None where the page was not drawn.
        grid: Rows and columns of crops.
        tokens: Number of the image's tokens, given or not.
        asked: The questions.
        kinds: Their kinds.
        answers: Their answers.
        classes: What each row of each crop reads, for CTC.
    """

    rows: list[int]
    contents: np.ndarray
    crops: np.ndarray | None
    grid: tuple[int, int]
    tokens: int
    asked: list[Asked]
    kinds: list[str]
    answers: list[str]
    classes: list[list[int]]


class Words:
    """The tokenizer's pieces that a conversation needs."""

    def __init__(self, path: Path) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.end, self.start = self.model.piece_to_id(END), self.model.piece_to_id(START)
        encode = self.model.encode
        # the piece of each class of cell; class 0 and the gap have none
        self.classes = [self.model.piece_to_id("\u2581" if c == " " else c) for c in CLASSES]
        self.texts: list[str] = []  # of the runs of the page in hand
        self.before = [1, self.start, *encode("user\n")]
        self.between = [self.end, *encode("\n"), self.start, *encode("assistant\n")]

    def asked(self, question: pages.Question, cell_of: dict[tuple[int, int], tuple[int, ...]]) -> Asked:
        """Return the tokens of a question and its answer, with the cells of each copied character."""
        prompt = [*self.model.encode(question.text), *self.between]
        answer = self.model.encode(question.answer)
        cells: list[tuple[int, ...]] = [()] * (len(answer) + 1)
        at = 0
        for run, start, stop in question.spans:
            if len(answer) != len(question.answer):  # a character without a piece of its own
                break
            length = stop - start
            at = question.answer.index(self.texts[run][start:stop], at)
            for offset in range(length):
                cells[at + offset] = cell_of.get((run, start + offset), ())
            at += length
        if question.spans and not question.answer.endswith("}"):
            cells[-1] = cells[-2]
        labels = [-100] * len(prompt) + [*answer, self.end]
        return Asked([*prompt, *answer, self.end], labels, [()] * len(prompt) + cells)


def contents_of(
    rng: random.Random, page: pages.Page, layout: Any, noise: float
) -> tuple[np.ndarray, dict[tuple[int, int], tuple[int, ...]], list[list[int]]]:
    """Return an image's ideal cells, where its characters are, and what its crops' rows read.

    Returns:
        The ideal cells, int64 [tokens, 6]; the image tokens that hold character `at` of run `run`, by (run, at); and
        the classes of each row of merged cells of each crop, crops in order, for CTC.
    """
    across, down = 12 * layout.cols, 12 * layout.rows
    scale_x, scale_y = layout.resized_width / layout.width, layout.resized_height / layout.height
    grid = np.zeros((down, across * FRAMES), dtype=np.int64)
    cell_of: dict[tuple[int, int], tuple[int, ...]] = {}
    whole = layout.rows * layout.cols == 1  # then the global view shows the same as the only crop

    def tokens(row: int, column: int) -> tuple[int, ...]:
        local = OVERVIEW + row * (across + 1) + column
        return (row * 13 + column, local) if whole else (local,)

    def mark(row: int, x: float, number: int) -> int:
        at = int(x * FRAMES / pages.CELL)
        at = min(max(at, 0), across * FRAMES - 1)
        for near in (at, at + 1, at - 1):
            if 0 <= near < across * FRAMES and not grid[row, near]:
                grid[row, near] = number
                return near
        return at

    ends: dict[int, list[tuple[float, float]]] = {}
    read: list[list[tuple[float, int]]] = [[] for _ in range(down)]
    middles = [(run.middle * scale_y + layout.pad_top) / pages.CELL for run in page.runs]
    for index, (run, shown) in enumerate(zip(page.runs, rows_of(middles), strict=True)):
        edges = [edge * scale_x + layout.pad_left for edge in run.edges]
        for row in shown:
            if not 0 <= row < down:
                continue
            ends.setdefault(row, []).append((edges[0], edges[-1]))
            shift = rng.uniform(-4, 4) if noise else 0.0
            for at, character in enumerate(run.text):
                x = (edges[at] + edges[at + 1]) / 2
                number = NUMBER[character]
                read[row].append((x, number))
                if noise and rng.random() < noise:
                    number = rng.choice((0, rng.randrange(1, len(CLASSES))))
                frame = mark(row, x + shift + (rng.uniform(-3, 3) if noise else 0.0), number)
                cell_of[index, at] = cell_of.get((index, at), ()) + tokens(row, frame // FRAMES)
    for row, sides in ends.items():
        sides.sort()
        for (_, left), (right, _) in zip(sides, sides[1:], strict=False):
            mark(row, (left + right) / 2, NUMBER[GAP])
            read[row].append(((left + right) / 2, NUMBER[GAP]))
    classes = [
        [number for x, number in sorted(read[row]) if column * pages.SIDE <= x < (column + 1) * pages.SIDE]
        for top in range(0, down, 12)
        for column in range(layout.cols)
        for row in range(top, top + 12)
    ]
    cells = np.where(grid > 0, grid + np.tile(np.arange(FRAMES), across) * len(CLASSES), PADDING)
    cells = cells.reshape(down, across, FRAMES)
    cells[(cells == PADDING).all(-1), 0] = BLANK
    contents = np.full((layout.tokens, FRAMES), PADDING, dtype=np.int64)
    contents[:, 0] = BLANK
    local = np.full((down, across + 1, FRAMES), PADDING, dtype=np.int64)
    local[:, :across], local[:, across, 0] = cells, NEWLINE
    contents[OVERVIEW:] = local.reshape(-1, FRAMES)
    if whole:
        contents[: OVERVIEW - 1] = contents[OVERVIEW:]
    contents[[12 + 13 * row for row in range(12)], 0] = NEWLINE
    contents[OVERVIEW - 1, 0] = SEPARATOR
    return contents, cell_of, classes


def sample(
    rng: random.Random,
    files: list[Path],
    words: Words,
    hard: pages.Difficulty,
    grid: tuple[int, int],
    blank: float | None,
    noise: float = 0.0,
    printed: float = 1.0,
) -> Sample:
    """Draw a page with questions.

    Args:
        rng: Source of every choice.
        files: Fonts.
        words: The tokenizer.
        hard: Difficulty of the page.
        grid: Rows and columns of crops.
        blank: None to give every image token; otherwise only the crops' rows with print, and others with this
            probability.
        noise: Share of characters that the ideal cells get wrong.
        printed: Share of the page's height that is printed.
    """
    while True:
        page = pages.question_page(rng, grid, files, hard, printed)
        layout = plan(page.image.width, page.image.height, grid[0] * grid[1])
        if page.questions and (layout.rows, layout.cols) == grid:
            break
    contents, cell_of, classes = contents_of(rng, page, layout, noise)
    rows = list(range(layout.tokens))
    if blank is not None:
        across = 12 * layout.cols + 1
        printed: set[int] = set()
        for cells in cell_of.values():
            printed.update(cell for cell in cells if cell >= OVERVIEW)
        lines = {(at - OVERVIEW) // across for at in printed}
        for line in lines:
            inside = [at for at in printed if (at - OVERVIEW) // across == line]
            printed |= set(range(min(inside), max(inside) + 1))
            printed.add(OVERVIEW + (line + 1) * across - 1)
        rows = [at for at in rows if at in printed or (blank and rng.random() < blank)]
    words.texts = [run.text for run in page.runs]
    chosen = rng.sample(page.questions, min(QUESTIONS, len(page.questions)))
    chosen = [q for q in chosen if len(q.answer) <= 90]
    return Sample(
        rows,
        contents[rows],
        cut(place(page.image, layout)) if hard.drawn else None,
        grid,
        layout.tokens,
        [words.asked(question, cell_of) for question in chosen],
        [question.kind for question in chosen],
        [question.answer for question in chosen],
        classes,
    )


@dataclass
class Batch:
    """Samples padded to one length, as tensors; see `batch_of`."""

    samples: list[Sample]
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    image_rows: torch.Tensor
    contents: torch.Tensor
    asking: torch.Tensor  # flat rows that predict a label
    labels: torch.Tensor
    guided: torch.Tensor  # which of `asking` have cells
    allowed: torch.Tensor  # bool [guided, length]: the cells

    def to(self, device: str) -> Batch:
        """Return the batch with its tensors on a device."""
        tensors = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)


def batch_of(samples: list[Sample], words: Words) -> Batch:
    """Lay each page out once with its questions after it; each question sees the page and itself only."""
    first = len(words.before)
    length = max(first + len(s.rows) + sum(len(a.ids) for a in s.asked) for s in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.int64)
    positions = torch.zeros(len(samples), length, dtype=torch.int64)
    part = torch.full((len(samples), length), -1, dtype=torch.int64)  # 0 page, 1.. questions, -1 padding
    image_rows, asking, labels, guided, allowed = [], [], [], [], []
    for index, one in enumerate(samples):
        ids[index, :first] = torch.tensor(words.before)
        at = first + len(one.rows)
        positions[index, :first] = torch.arange(first)
        positions[index, first:at] = first + torch.tensor(one.rows)
        part[index, :at] = 0
        image_rows += [index * length + first + row for row in range(len(one.rows))]
        place_of = {row: first + place for place, row in enumerate(one.rows)}
        for number, asked in enumerate(one.asked, 1):
            stop = at + len(asked.ids)
            ids[index, at:stop] = torch.tensor(asked.ids)
            positions[index, at:stop] = first + one.tokens + torch.arange(len(asked.ids))
            part[index, at:stop] = number
            for offset, label in enumerate(asked.labels):
                if label == -100:
                    continue
                cells = [place_of[cell] for cell in asked.cells[offset] if cell in place_of]
                if cells:
                    row = torch.zeros(length, dtype=torch.bool)
                    row[cells] = True
                    guided.append(len(asking))
                    allowed.append(row)
                asking.append(index * length + at + offset - 1)
                labels.append(label)
            at = stop
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = part[:, :, None] == part[:, None, :]
    mask = (same | (part[:, None, :] == 0)) & causal
    return Batch(
        samples,
        ids,
        positions,
        mask[:, None],
        torch.tensor(image_rows),
        torch.from_numpy(np.concatenate([one.contents for one in samples])),
        torch.tensor(asking),
        torch.tensor(labels),
        torch.tensor(guided, dtype=torch.int64),
        torch.stack(allowed) if allowed else torch.zeros(0, length, dtype=torch.bool),
    )
