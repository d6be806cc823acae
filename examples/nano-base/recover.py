"""Stage `recover`: go on from a written base, of which the ideal cells and the head for CTC were thrown away.

Both are learned again with the network frozen: the ideal cells as what the projector gives for each character at each
place on average, the head from the tower's rows. Then `cells` and `read` can be run for longer.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import fonts
import torch
from cells import BATCH, Eyes, dense, frame_labels
from network import IXC2ForCausalLM
from reader import Reader
from samples import Words
from stages import batch_ctc
from state import Machine, State, Steps, schedule
from torch import nn
from tower import right

RATE = 3e-3  # AdamW's
FIRST = 100_000  # number of the first page, beyond those of `cells`


def recover(out: Path, vocabulary: Path, steps: int, decay: int, machine: Machine, base: Path) -> None:
    """Fit ideal cells and head to the network in `base`, for `cells` to start from; resume from OUT/recover.pt."""
    torch.manual_seed(5)
    words = Words(vocabulary)
    reader = Reader(words).to(machine.device)
    written = IXC2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    reader.network.load_state_dict(written.state_dict())
    reader.network.requires_grad_(False)
    fitted = [*reader.ideal.parameters(), *reader.head.parameters()]
    state = State(out / "recover.pt", reader, [torch.optim.AdamW(fitted, lr=RATE, weight_decay=0.0)])
    draw = partial(dense, fonts.find(), words, BATCH * machine.times)
    work = Steps(FIRST + state.step, FIRST + steps, draw, machine).loader()
    began, average = time.time(), [0.0, 0.0, 0.0]
    for drawn in work:
        batch = drawn.to(machine.device)
        rows, logits = reader.tower_rows(batch)
        given = reader.network.vision_proj(rows)
        fit = (reader.ideal_vectors(batch) - given).square().mean() / given.var(0).mean()
        read = batch_ctc(logits, batch)
        frames = nn.functional.cross_entropy(logits.flatten(0, 1), frame_labels(batch))
        (fit + read + frames).backward()
        state.update(schedule(state.step, steps, 20, decay))
        rate = 1 / min(state.step, 20)
        losses = (fit.item(), read.item(), frames.item())
        average = [(1 - rate) * a + rate * b for a, b in zip(average, losses, strict=True)]
        if state.step % 25 == 0:
            text = "fit {:.3f} ctc {:.3f} frames {:.3f}".format(*average)
            print(f"recover {state.step}/{steps} {text} {time.time() - began:.0f}s", flush=True)
    state.save()
    scores = [right(Eyes(reader), unseen) for unseen in (False, True)]
    text = ", ".join(f"characters {c:.3f} words {w:.3f}" for c, w in scores)
    print(f"recover {state.step} seen | unseen fonts: {text}", flush=True)
