"""Stage `see`: the vision tower learns to read every row of merged cells by CTC; the head is thrown away afterwards.

A merged cell covers 28 x 28 pixels. The head makes six frames of each, so a row of twelve cells has 72. Its target is
the text whose vertical centre is in the row, from left to right, with a class of its own for the gap between two
pieces of text. In the first steps the frames are also told which character is centred in them: without that, CTC
takes a long time to leave the empty answer.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import fonts
import numpy as np
import pages
import torch
from network import WIDTH, IXC2ForCausalLM, configuration, merge_2x2, normalise
from painter import rows_of
from state import Machine, State, Steps, hidden_matrices, optimizers, schedule
from texts import PRINTABLE
from torch import nn

FRAMES = 6  # of a cell
GAP = "\t"  # between two pieces of text in a row
CLASSES = ["", *PRINTABLE, " ", GAP]  # class 0 is CTC's blank
NUMBER = {character: index for index, character in enumerate(CLASSES)}
ROWS = pages.SIDE // pages.CELL
BATCH = 8
VALIDATION_PAGES = 24  # of trained and of unseen fonts
GUIDED_STEPS = 1000  # over which the frames' own labels fade out
HARD_STEPS = 1600  # over which pages become small and noisy
MUON_RATE, ADAM_RATE = 0.02, 3e-3


class Head(nn.Module):
    """Reads the frames of every merged cell."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * WIDTH)
        self.linear = nn.Linear(4 * WIDTH, FRAMES * len(CLASSES))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Merged maps [N, 12, 12, 512] -> logits [N * 12 rows, 72 frames, classes]."""
        logits: torch.Tensor = self.linear(self.norm(maps))
        return logits.reshape(-1, ROWS * FRAMES, len(CLASSES))


class Tower(nn.Module):
    """The vision tower with the head of this stage."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = IXC2ForCausalLM(configuration(0.02)).vit
        self.head = Head()

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, 336, 336] -> logits [N * 12 rows, 72 frames, classes]."""
        logits: torch.Tensor = self.head(merge_2x2(self.vit(normalise(crops))[:, 1:]))
        return logits


def targets(page: pages.Page) -> tuple[list[list[int]], np.ndarray]:
    """Return each row's classes, and the class centred in each frame: int64 [12, 72], 0 where there is none."""
    rows: list[list[pages.Run]] = [[] for _ in range(ROWS)]
    for run, shown in zip(page.runs, rows_of([run.middle / pages.CELL for run in page.runs]), strict=True):
        for row in shown:
            if 0 <= row < ROWS:
                rows[row].append(run)
    classes: list[list[int]] = []
    frames = np.zeros((ROWS, ROWS * FRAMES), dtype=np.int64)

    def mark(row: int, x: float, number: int) -> None:
        at = int(x * FRAMES / pages.CELL)
        if 0 <= at < ROWS * FRAMES and not frames[row, at]:
            frames[row, at] = number

    for row, runs in enumerate(rows):
        found: list[int] = []
        last = None
        for run in sorted(runs, key=lambda one: one.edges[0]):
            if last is not None:
                found.append(NUMBER[GAP])
                mark(row, (last + run.edges[0]) / 2, NUMBER[GAP])
            for at, character in enumerate(run.text):
                found.append(NUMBER[character])
                mark(row, (run.edges[at] + run.edges[at + 1]) / 2, NUMBER[character])
            last = run.edges[-1]
        classes.append(found)
    return classes, frames


def dense_pages(files: list[Path], batch: int, step: int) -> dict[str, torch.Tensor]:
    """Draw the batch of one step: large clean print first, then small and noisy print too."""
    rng = random.Random(f"see {step}")
    hard = pages.Difficulty(min(1.0, step / HARD_STEPS))
    return collate([pages.dense_page(rng, files, hard) for _ in range(batch)])


def collate(drawn: list[pages.Page]) -> dict[str, torch.Tensor]:
    """Return crops, CTC targets of all rows one after the other with their lengths, and frame labels."""
    labels = [targets(page) for page in drawn]
    rows = [row for classes, _ in labels for row in classes]
    return {
        "crops": torch.from_numpy(np.stack([np.asarray(page.image) for page in drawn])).permute(0, 3, 1, 2),
        "targets": torch.tensor([number for row in rows for number in row], dtype=torch.int64),
        "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int64),
        "frames": torch.from_numpy(np.concatenate([frames for _, frames in labels])),
    }


def ctc(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the CTC loss per character."""
    logs = nn.functional.log_softmax(logits, -1).transpose(0, 1)
    whole = torch.full((logits.shape[0],), logits.shape[1], dtype=torch.int64)
    summed = nn.functional.ctc_loss(
        logs, batch["targets"].to(logs.device), whole, batch["lengths"], reduction="sum", zero_infinity=True
    )
    return summed / max(1, len(batch["targets"]))


def edits(one: list[int], other: list[int]) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(other) + 1))
    for at, item in enumerate(one, 1):
        before, row[0] = row[0], at
        for to, against in enumerate(other, 1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (item != against))
    return row[-1]


@torch.no_grad()
def right(tower: Tower, unseen: bool) -> tuple[float, float]:
    """Return 1 - character error rate and the share of words right, on pages of full difficulty not trained on."""
    rng, files = random.Random(f"validation {unseen}"), fonts.find(unseen)
    wrong = characters = words = found = 0
    for _ in range(VALIDATION_PAGES // 8):
        batch = collate([pages.dense_page(rng, files, pages.Difficulty(1.0)) for _ in range(8)])
        best = tower(batch["crops"].to(next(tower.parameters()).device)).argmax(-1)
        start = 0
        for row, length in zip(best.tolist(), batch["lengths"].tolist(), strict=True):
            wanted = batch["targets"][start : start + length].tolist()
            start += length
            read = [number for at, number in enumerate(row) if number and (not at or row[at - 1] != number)]
            wrong, characters = wrong + edits(read, wanted), characters + length
            spoken = ["".join(CLASSES[number] for number in one).split() for one in (read, wanted)]
            words += len(spoken[1])
            found += sum(min(spoken[0].count(w), spoken[1].count(w)) for w in set(spoken[1]))
    return 1 - wrong / max(1, characters), found / max(1, words)


def see(out: Path, steps: int, decay: int, machine: Machine, batch: int = BATCH, every: int = 250) -> None:
    """Train until `steps`, with the rate falling over the last `decay`; resume from OUT/see.pt."""
    torch.manual_seed(1)
    tower = Tower().to(machine.device)
    matrices, others = hidden_matrices(tower)
    state = State(out / "see.pt", tower, optimizers([(matrices, MUON_RATE)], [(others, ADAM_RATE)]))
    work = Steps(state.step, steps, partial(dense_pages, fonts.find(), batch * machine.times), machine).loader()
    began, average = time.time(), None
    for drawn in work:
        one = {name: value.to(machine.device) for name, value in drawn.items()}
        logits = tower(one["crops"])
        loss = ctc(logits, one)
        guide = max(0.0, 1 - state.step / GUIDED_STEPS)
        total = loss
        if guide:
            weights = torch.ones(len(CLASSES), device=machine.device)
            weights[0] = 0.3
            total = loss + 2 * guide * nn.functional.cross_entropy(
                logits.flatten(0, 1), one["frames"].flatten(), weights
            )
        total.backward()
        norm = state.update(schedule(state.step, steps, 100, decay))
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if state.step % 25 == 0:
            spent = time.time() - began
            print(f"see {state.step}/{steps} ctc {average:.3f} norm {norm:.2f} {spent:.0f}s", flush=True)
        if state.step % every == 0 or state.step == steps:
            state.save()
            scores = [right(tower, unseen) for unseen in (False, True)]
            text = ", ".join(f"characters {c:.3f} words {w:.3f}" for c, w in scores)
            print(f"see {state.step} seen | unseen fonts: {text}", flush=True)
        elif state.step % 50 == 0:
            state.save()
    state.save()
