"""Dry run: one real step on the largest pack, in a temporary folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from transformers import set_seed

from ixtune.planning.plan import Plan
from ixtune.recipe.recipe import Recipe
from ixtune.training.assembly import Say, assemble, build
from ixtune.training.inputs import Inputs
from ixtune.training.monitoring import metrics
from ixtune.training.processes import launch


def dry_run(recipe: Recipe, inputs: Inputs, plan: Plan, say: Say) -> None:
    """Load, take one step (forward, backward, optimizer) on the largest pack, and show time and memory.

    Args:
        recipe: The recipe of the run.
        inputs: Its opened inputs.
        plan: Its plan.
        say: Shows a line to the reader.
    """
    settings = {"max_steps": 1, "gradient_accumulation": 1, "report_to": ()}
    once = recipe.model_copy(update={"training": recipe.training.model_copy(update=settings)})
    set_seed(recipe.training.seed)
    metrics.reset_peak_memory()
    before = metrics.peak_memory_bytes()  # without a GPU, of the libraries
    began = time.monotonic()
    network = build(recipe, inputs, plan.saving, say)
    loaded = time.monotonic()
    worst = inputs.packs[plan.need.worst]
    with tempfile.TemporaryDirectory() as folder:
        trainer = assemble(once, inputs, network, Path(folder), [worst] * launch.world_size())
        trainer.args.save_strategy = "no"
        loss = trainer.train().training_loss
    # Linux counts pages in batches per core: where nothing was added, the second reading can be a few pages lower
    took = max(0, metrics.peak_memory_bytes() - before) / 2**30
    say(
        f"dry run  loaded in {loaded - began:.1f} s; one step on the largest pack "
        f"({plan.worst_pack.tokens:,} tokens) in {time.monotonic() - loaded:.1f} s, including one-time work; "
        f"loss {loss:.4f}; peak {took:.2f} GiB, planned {plan.memory.total / 2**30:.2f} GiB; nothing was written"
    )
