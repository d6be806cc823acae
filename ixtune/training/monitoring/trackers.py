"""TensorBoard and W&B, by transformers' own callbacks."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from ixtune.errors import UsageError


def require(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before anything is loaded.

    Raises:
        UsageError: with the command that installs it.
    """
    for name in names:
        try:  # not by looking for a module: W&B leaves a folder of its own name behind, which would be taken for one
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise UsageError(
                f"training.report_to asks for {name}, which is not installed",
                hint=f'pip install "ixtune[{name}]", or take it out of training.report_to',
            ) from error


def prepare(names: Sequence[str], run: Path) -> None:
    """Tell W&B where a run belongs, by its own variables; what the user has set stays.

    TensorBoard needs no telling: its files go to `runs` in the run folder.
    """
    if "wandb" in names:
        os.environ.setdefault("WANDB_PROJECT", "ixtune")
        os.environ.setdefault("WANDB_NAME", run.name)
        os.environ.setdefault("WANDB_DIR", str(run))
