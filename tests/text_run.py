"""Run training in this process on records without images: a step takes a few hundredths of a second."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ixtune.base import resolve
from ixtune.data.prepare import prepare
from ixtune.data.prepared.manifest import PrepareOptions
from ixtune.data.sources.source import Source
from ixtune.recipe import recipe as recipes

RECIPE = """
base: nano
data:
  train: {data}
adapter:
  rank: 2
  alpha: 4
training:
  max_steps: 6
  pack_tokens: 80
  learning_rate: 1.0e-3
  compute_dtype: fp32
  gradient_checkpointing: false
  log_every: 1
  save_every: 2
output: {output}
"""


def prepare_texts(folder: Path, count: int = 12, first: int = 0, system: str | None = None) -> Path:
    """Prepare a set of sums, about 30 tokens each, plus a system prompt if given."""
    folder.mkdir(parents=True)
    turns = [
        [{"from": "user", "value": f"{n} and {n + 2}?"}, {"from": "assistant", "value": f"{2 * n + 2}"}]
        for n in range(first, first + count)
    ]
    records = [{"id": f"t{first + n}", "conversations": turn} for n, turn in enumerate(turns)]
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    prepare(
        [Source(path=str(folder / "data.json"), system=system)],
        folder / "prepared",
        base=resolve("nano"),
        options=PrepareOptions(hd_num=1),
    )
    return folder / "prepared"


def text_recipe(folder: Path, data: Path, *changes: str) -> recipes.Recipe:
    """Write a recipe whose output is the folder `run` below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(data=data, output=folder / "run"), encoding="utf-8")
    return recipes.load(path, changes)


def run(recipe: recipes.Recipe, **how: Any) -> tuple[Any, str]:
    """Train; return the outcome and the printed output."""
    from ixtune.training.run import train

    said = io.StringIO()
    outcome = train(recipe, Console(file=said, width=400), **how)
    return outcome, said.getvalue()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(run_folder: Path) -> list[tuple[int, float, float]]:
    """Return (step, loss, gradient norm) of each step."""
    lines = lines_of(run_folder / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
