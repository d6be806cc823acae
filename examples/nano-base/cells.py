"""Stage `cells`: the tower and the projector learn to give the decoder the cells that it learned to read in `copy`."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import fonts
import pages
import torch
from network import PatchLayout, cut, merge_2x2, normalise, place, plan
from reader import Reader
from samples import BLANK, OVERVIEW, Batch, Sample, Words, batch_of, contents_of
from stages import batch_ctc, recovered, start
from state import Machine, State, Steps, hidden_matrices, optimizers, schedule
from torch import nn
from tower import CLASSES, FRAMES, right

BATCH = 6
RATES = {"tower": (0.02, 3e-3), "projector": 1e-3}  # Muon's and AdamW's
CTC_SHARE, FRAME_SHARE, FIT_SHARE = 0.5, 1.0, 2.0
FIT_BATCHES = 12  # that the projector is solved for before the first step


def dense(files: list[Path], words: Words, count: int, step: int) -> Batch:
    """Draw the pages of one step: one crop each, without questions."""
    rng = random.Random(f"cells {step}")
    layout = plan(pages.SIDE, pages.SIDE, 1)
    drawn = []
    for _ in range(count):
        page = pages.stretched_page(rng, files, pages.Difficulty(1.0))
        drawn.append(sample_of(rng, page, layout))
    return batch_of(drawn, words)


def sample_of(rng: random.Random, page: pages.Page, layout: PatchLayout) -> Sample:
    """Return a page of one crop without its global view, which shows the same."""
    contents, _, classes = contents_of(rng, page, layout, 0.0)
    rows = list(range(OVERVIEW - 1, layout.tokens))
    return Sample(rows, contents[rows], cut(place(page.image, layout)), (1, 1), layout.tokens, [], [], [], classes)


def frame_labels(batch: Batch) -> torch.Tensor:
    """Return the class in each frame of each cell, int64 [crops * 12 rows * 72 frames]; 0 where there is none."""
    kept = torch.cat([torch.from_numpy(one.contents[1:]).view(12, 13, FRAMES)[:, :12] for one in batch.samples])
    return torch.where(kept < BLANK, kept % len(CLASSES), 0).flatten().to(batch.ids.device)


class Eyes(nn.Module):
    """The tower and the head, as `tower.right` calls them."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, 336, 336] -> logits [N * 12 rows, 72 frames, classes]."""
        return self.reader.head(merge_2x2(self.reader.network.vit(normalise(crops))[:, 1:]))


def cells(out: Path, vocabulary: Path, steps: int, decay: int, machine: Machine, every: int = 500) -> None:
    """Train the tower and the projector until `steps`; resume from OUT/cells.pt."""
    torch.manual_seed(4)
    words = Words(vocabulary)
    reader = Reader(words).to(machine.device)
    files = fonts.find()
    if not (out / "cells.pt").exists() and not recovered(out, reader):
        start(out, reader)
        left = reader.fit_projector(
            dense(files, words, BATCH, -step).to(machine.device) for step in range(1, FIT_BATCHES + 1)
        )
        print(f"cells 0 the projector leaves {left:.3f} of the ideal cells' variance", flush=True)
    network = reader.network
    for module in (network.model, network.output, reader.ideal):
        module.requires_grad_(False)
    matrices, others = hidden_matrices(nn.ModuleList([network.vit, reader.head]))
    projector = [*network.vision_proj.parameters(), *network.separators.parameters()]
    state = State(
        out / "cells.pt",
        reader,
        optimizers([(matrices, RATES["tower"][0])], [(others, RATES["tower"][1]), (projector, RATES["projector"])]),
    )
    work = Steps(state.step, steps, partial(dense, files, words, BATCH * machine.times), machine).loader()
    weights = torch.ones(len(CLASSES), device=machine.device)
    weights[0] = 0.3  # most frames hold no character
    began = time.time()
    average: dict[str, float] = {}
    for drawn in work:
        batch = drawn.to(machine.device)
        rows, logits = reader.tower_rows(batch)
        wanted = reader.ideal_vectors(batch)
        losses = {
            "ctc": batch_ctc(logits, batch),
            "frames": nn.functional.cross_entropy(logits.flatten(0, 1), frame_labels(batch), weights),
            "fit": (network.vision_proj(rows) - wanted).square().mean() / wanted.var(0).mean(),
        }
        total = CTC_SHARE * losses["ctc"] + FRAME_SHARE * losses["frames"] + FIT_SHARE * losses["fit"]
        total.backward()
        nn.utils.clip_grad_norm_(projector, 0.3)  # its gradient is ten times the tower's
        norm = state.update(schedule(state.step, steps, 50, decay))
        for name, loss in losses.items():
            average[name] = 0.98 * average.get(name, loss.item()) + 0.02 * loss.item()
        if state.step % 50 == 0:
            text = " ".join(f"{name} {value:.3f}" for name, value in average.items())
            print(f"cells {state.step}/{steps} {text} norm {norm:.2f} {time.time() - began:.0f}s", flush=True)
        if state.step % every == 0 or state.step == steps:
            state.save()
            scores = [right(Eyes(reader), unseen) for unseen in (False, True)]
            text = ", ".join(f"characters {c:.3f} words {w:.3f}" for c, w in scores)
            print(f"cells {state.step} seen | unseen fonts: {text}", flush=True)
        elif state.step % 100 == 0:
            state.save()
    state.save()
