"""Create the optimizer and its parameter groups: learning rate and weight decay of every trained tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from ixtune.adapter import attach
from ixtune.recipe.recipe import Recipe, TrainingSection

# A recipe's names -> transformers'. The paged ones are bitsandbytes', whose state may move to main memory.
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def learning_rate(training: TrainingSection, part: str) -> float:
    """Return the peak learning rate of `lora`, `projector` or `separators`; with LoRA+ that of the A matrices."""
    own = {"projector": training.projector_learning_rate, "separators": training.separators_learning_rate}
    return own.get(part) or training.learning_rate


def parameter_groups(model: PeftModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Return parameter groups with learning rate and weight decay for every trained tensor; LoRA's A first.

    With LoRA+ (arXiv 2402.12354) every B learns `lora_plus_ratio` times as fast as its A. Matrices decay; biases,
    DoRA's magnitudes and the separators do not.

    Returns:
        groups as torch's optimizers take them; `part` names each for the log, with `_b` for the faster ones.
    """
    training = recipe.training
    ratio = training.lora_plus_ratio or 1.0
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for tensor, parameter in attach.trained(model):
        faster = tensor.role == "B" and ratio != 1.0
        decays = parameter.ndim == 2
        part = tensor.part + "_b" * faster
        group = groups.setdefault(
            (part, decays),
            {
                "params": [],
                "part": part,
                "lr": learning_rate(training, tensor.part) * (ratio if faster else 1.0),
                "weight_decay": training.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def create(model: PeftModel, recipe: Recipe, args: TrainingArguments) -> torch.optim.Optimizer:
    """Create the optimizer of a recipe on the groups of its adapter, with betas and epsilon from the arguments."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    settings.pop("lr", None)
    if "is_paged" in settings and not torch.cuda.is_available():
        settings["is_paged"] = False  # the state is in main memory anyway; bitsandbytes would warn at the first step
    optimizer: torch.optim.Optimizer = kind(
        parameter_groups(model, recipe), lr=recipe.training.learning_rate, **settings
    )
    return optimizer


def table_lines(model: PeftModel, recipe: Recipe) -> Iterator[str]:
    """Yield the lines of the table of trained parts and their learning rates."""
    header = ("part", "tensors", "parameters", "dtype", "rank", "alpha", "dropout", "learning rate")
    rows, total = [], 0
    for row in attach.table(model):
        total += row.parameters
        rate, ratio = learning_rate(recipe.training, row.part), recipe.training.lora_plus_ratio
        rates = f"{rate:g}" if row.rank is None or ratio is None else f"{rate:g}, B {rate * ratio:g}"
        lora = [f"{value:g}" if value is not None else "" for value in (row.rank, row.alpha, row.dropout)]
        rows.append((row.name, f"{row.tensors:,}", f"{row.parameters:,}", row.dtype, *lora, rates))
    rows.append(("all", "", f"{total:,}", "", "", "", "", ""))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, *rows):
        padded = [
            cell.ljust(width) if number in (0, 3, 7) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()
