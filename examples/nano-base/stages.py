"""Stages `copy` and `read`: the decoder learns to answer from cells, first from ideal ones, then from the tower's.

`copy` needs no image: every cell is the sum of learned vectors, one for each character at each sixth of the cell, as a
tower that reads perfectly would give. `read` fits the projector to those vectors and trains everything together on
drawn pages.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import fonts
import pages
import torch
from reader import Reader
from samples import Batch, Words, batch_of, sample
from state import Machine, State, Steps, hidden_matrices, optimizers, schedule
from torch import nn
from tower import ctc

Counts = dict[str, tuple[int, int]]  # kind of question: right answers, all answers

COPY_MUON_RATE, COPY_ADAM_RATE = 0.006, 2e-3
COPY_BATCH = 12
LINE_STEPS = 300  # with a line or two on each page
WHOLE_FROM = 600  # the step from which there are blank cells, and pages of several crops


def copies(files: list[Path], words: Words, times: int, step: int) -> Batch:
    """Draw the pages of one step of `copy`: a line or two of one crop first, then full pages of several crops."""
    rng = random.Random(f"copy {step}")
    hard = pages.Difficulty(min(1.0, step / 800), drawn=False)
    grid, blank, count = (1, 1), 0.0, COPY_BATCH
    if step >= WHOLE_FROM:
        blank, count = rng.choice([0.0, None]), 5
        if rng.random() < 0.5:
            grid = rng.choices(list(pages.GRIDS), list(pages.GRIDS.values()))[0]
    most = min(1.0, 0.2 + max(0, step - LINE_STEPS) / 500)
    noise = 0.005
    drawn = [
        sample(rng, files, words, hard, grid, blank, noise, printed=rng.uniform(0.15, most))
        for _ in range(max(1, times * count // (grid[0] * grid[1])))
    ]
    return batch_of(drawn, words)


def exact(logits: torch.Tensor, batch: Batch) -> Counts:
    """Return, for each kind of question, how many answers are right token by token (teacher forced), and how many."""
    right = (logits.argmax(-1) == batch.labels).tolist()
    found: Counts = {}
    at = 0
    for one in batch.samples:
        for asked, kind in zip(one.asked, one.kinds, strict=True):
            length = sum(label != -100 for label in asked.labels)
            good, all_ = found.get(kind, (0, 0))
            found[kind] = (good + all(right[at : at + length]), all_ + 1)
            at += length
    return found


def copy(out: Path, vocabulary: Path, steps: int, decay: int, machine: Machine, every: int = 100) -> None:
    """Train the decoder on ideal cells until `steps`; resume from OUT/copy.pt."""
    torch.manual_seed(2)
    words = Words(vocabulary)
    reader = Reader(words).to(machine.device)
    matrices, others = hidden_matrices(reader.network.model)
    others += [*reader.ideal.parameters(), reader.network.output.weight]
    state = State(out / "copy.pt", reader, optimizers([(matrices, COPY_MUON_RATE)], [(others, COPY_ADAM_RATE)]))
    work = Steps(state.step, steps, partial(copies, fonts.find(), words, machine.times), machine).loader()
    began, average = time.time(), [0.0, 0.0]
    counts: Counts = {}
    for drawn in work:
        batch = drawn.to(machine.device)
        loss, guide, logits = reader(batch, reader.ideal_vectors(batch))
        (loss + 0.3 * guide).backward()
        norm = state.update(schedule(state.step, steps, 100, decay))
        rate = 0.02 if average[0] else 1.0
        average = [(1 - rate) * a + rate * b for a, b in zip(average, (loss.item(), guide.item()), strict=True)]
        counts = added(counts, exact(logits, batch))
        if state.step % 25 == 0:
            print(
                f"copy {state.step}/{steps} loss {average[0]:.3f} guide {average[1]:.3f} norm {norm:.2f} "
                f"{time.time() - began:.0f}s right: {shares(counts)}",
                flush=True,
            )
            counts = {}
        if state.step % every == 0:
            state.save()
    state.save()


READ_BATCH = 4
VALIDATION_PAGES = 24  # of trained and of unseen fonts
FIT_STEPS = 300  # over which the projector stays tied to the ideal cells
CTC_SHARE = 0.5  # weight of the CTC loss, which keeps training the tower to read
# Muon's and AdamW's rates: of the tower a tenth of those of `see`, of the decoder half of those of `copy`.
READ_RATES = {"tower": (0.002, 2e-4), "decoder": (0.003, 1e-3), "projector": 1e-4}


def readings(files: list[Path], words: Words, times: int, step: int) -> Batch:
    """Draw the pages of one step of `read`."""
    rng = random.Random(f"read {step}")
    grid = rng.choices(list(pages.GRIDS), list(pages.GRIDS.values()))[0]
    hard = pages.Difficulty(min(1.0, 0.5 + step / 600))
    blank = rng.choice([0.0, None])
    drawn = [
        sample(rng, files, words, hard, grid, blank, printed=rng.choice([rng.uniform(0.2, 1.0), 1.0]))
        for _ in range(max(1, times * READ_BATCH // (grid[0] * grid[1])))
    ]
    return batch_of(drawn, words)


def batch_ctc(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the CTC loss per character of a batch's crops."""
    rows = [row for one in batch.samples for row in one.classes]
    labels = {
        "targets": torch.tensor([number for row in rows for number in row], dtype=torch.int64),
        "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int64),
    }
    return ctc(logits, labels)


@torch.no_grad()
def scores(reader: Reader, words: Words, unseen: bool) -> Counts:
    """Return teacher-forced exact answers by kind on validation pages of one crop and full difficulty."""
    rng, files = random.Random(f"validation {unseen}"), fonts.find(unseen)
    found: Counts = {}
    for _ in range(VALIDATION_PAGES // 4):
        drawn = batch_of([sample(rng, files, words, pages.Difficulty(1.0), (1, 1), None) for _ in range(4)], words)
        batch = drawn.to(str(reader.head.linear.weight.device))
        _, _, logits = reader(batch, reader.network.vision_proj(reader.tower_rows(batch)[0]))
        found = added(found, exact(logits, batch))
    return found


def added(one: Counts, other: Counts) -> Counts:
    """Return the sums of two counts."""
    pairs = {kind: (one.get(kind, (0, 0)), other.get(kind, (0, 0))) for kind in one | other}
    return {kind: (a[0] + b[0], a[1] + b[1]) for kind, (a, b) in pairs.items()}


def shares(counts: Counts) -> str:
    """Return the shares of right answers as text."""
    return " ".join(f"{kind} {good / all_:.2f}" for kind, (good, all_) in sorted(counts.items()))


def recovered(out: Path, reader: Reader) -> bool:
    """Take everything from `recover`; return False if it was not run."""
    if found := (out / "recover.pt").exists():
        reader.load_state_dict(torch.load(out / "recover.pt", weights_only=True, map_location="cpu")["weights"])
    return found


def start(out: Path, reader: Reader) -> None:
    """Take the tower and its head from `see`, everything else from `copy`."""
    reader.load_state_dict(torch.load(out / "copy.pt", weights_only=True, map_location="cpu")["weights"], strict=False)
    seen = torch.load(out / "see.pt", weights_only=True, map_location="cpu")["weights"]
    reader.network.vit.load_state_dict({k[4:]: v for k, v in seen.items() if k.startswith("vit.")})
    reader.head.load_state_dict({k[5:]: v for k, v in seen.items() if k.startswith("head.")})


def read(out: Path, vocabulary: Path, steps: int, decay: int, machine: Machine, every: int = 200) -> None:
    """Train the whole network on drawn pages until `steps`; resume from OUT/read.pt."""
    torch.manual_seed(3)
    words = Words(vocabulary)
    reader = Reader(words).to(machine.device)
    if not (out / "read.pt").exists():
        reader.load_state_dict(torch.load(out / "cells.pt", weights_only=True, map_location="cpu")["weights"])
    network = reader.network
    tower = hidden_matrices(nn.ModuleList([network.vit, reader.head]))
    decoder = hidden_matrices(network.model)
    projector = [*network.vision_proj.parameters(), *network.separators.parameters()]
    state = State(
        out / "read.pt",
        reader,
        optimizers(
            [(tower[0], READ_RATES["tower"][0]), (decoder[0], READ_RATES["decoder"][0])],
            [
                (tower[1], READ_RATES["tower"][1]),
                ([*decoder[1], network.output.weight], READ_RATES["decoder"][1]),
                (projector, READ_RATES["projector"]),
            ],
        ),
    )
    reader.ideal.requires_grad_(False)
    work = Steps(state.step, steps, partial(readings, fonts.find(), words, machine.times), machine).loader()
    began = time.time()
    average: dict[str, float] = {}
    counts: Counts = {}
    for drawn in work:
        batch = drawn.to(machine.device)
        rows, read_rows = reader.tower_rows(batch)
        vectors = network.vision_proj(rows)
        losses = {"ctc": batch_ctc(read_rows, batch)}
        fitting = max(0.0, 1 - state.step / FIT_STEPS)
        if fitting:
            wanted = reader.ideal_vectors(batch)
            losses["fit"] = (vectors - wanted).square().mean() / wanted.var(0).mean()
        losses["answers"], losses["guide"], logits = reader(batch, vectors)
        total = losses["answers"] + 0.3 * losses["guide"] + CTC_SHARE * losses["ctc"]
        if fitting:
            total = total + fitting * losses["fit"]
        total.backward()
        nn.utils.clip_grad_norm_(projector, 0.3)  # its gradient is ten times that of everything else
        norm = state.update(schedule(state.step, steps, 50, decay))
        for name, loss in losses.items():
            average[name] = 0.96 * average.get(name, loss.item()) + 0.04 * loss.item()
        counts = added(counts, exact(logits, batch))
        if state.step % 25 == 0:
            text = " ".join(f"{name} {value:.3f}" for name, value in average.items())
            spent = time.time() - began
            print(f"read {state.step}/{steps} {text} norm {norm:.2f} {spent:.0f}s right: {shares(counts)}", flush=True)
            counts = {}
        if state.step % every == 0 or state.step == steps:
            state.save()
            for unseen in (False, True):
                name = "unseen" if unseen else "seen"
                print(f"read {state.step} {name} fonts: {shares(scores(reader, words, unseen))}", flush=True)
    state.save()
