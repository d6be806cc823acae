"""Stop a run whose loss or gradient is NaN or infinite before the optimizer step, and name the records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ixtune.data.prepared.training_set import TrainingSet
from ixtune.errors import IxtuneError
from ixtune.training.processes import parallel
from ixtune.training.processes.launch import LostPeerError

if TYPE_CHECKING:
    from transformers import Trainer

    from ixtune.training.batch import PackCollator

_NAMED_RECORDS = 8


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Records and loss of one forward and backward pass."""

    records: tuple[int, ...]
    loss: torch.Tensor


def require_finite(
    trainer: Trainer, step: Sequence[MicroBatch], grad_norm: Any, *, collator: PackCollator, run_folder: Path
) -> None:
    """Check the losses and the gradient norm of one optimizer step together, so that the device is waited for once.

    Raises:
        IxtuneError: something is NaN or infinite. The weights are still those of the step before.
    """
    device = trainer.args.device
    norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=device)
    *losses, norm_value = torch.stack([*(micro.loss.float() for micro in step), norm]).tolist()
    # the norm is of all processes' gradients, so they agree on this
    if math.isfinite(norm_value) and not parallel.any_of(not all(map(math.isfinite, losses))):
        return
    bad = [loss for loss in losses if not math.isfinite(loss)]
    known = parallel.any_of(bool(bad))
    mine = bool(bad) or not known  # else another process has the loss, and names its records
    suspects = [micro for micro, loss in zip(step, losses, strict=True) if not (bad and math.isfinite(loss))]
    records = [index for micro in suspects for index in micro.records]
    offenders = list(_offenders(trainer, collator, records, gradients=not bad)) if mine else []
    # all processes ask this, before any leaves
    if parallel.any_of(bool(offenders)) and not offenders or not mine:
        raise LostPeerError
    raise IxtuneError(
        f"training diverged: {f'the loss is {bad[0]}' if bad else f'the gradient norm is {norm_value}'} "
        f"in step {trainer.state.global_step + 1}, which was not applied",
        where=str(run_folder),
        hint="look at the records named above, or lower training.learning_rate; the checkpoints so far are kept",
        notes=_named(collator.training_set, records, offenders),
    )


def _named(training_set: TrainingSet, records: Sequence[int], offenders: Sequence[int]) -> list[str]:
    """Return lines that name the offending records and say whether they are likely the cause."""
    named = offenders or records
    notes = [training_set.identity(index) for index in named[:_NAMED_RECORDS]]
    if len(named) > _NAMED_RECORDS:
        notes.append(f"and {len(named) - _NAMED_RECORDS:,} more")
    if not offenders:
        return ["no record does so alone; together these do:", *notes]
    if len(offenders) == len(records) > 1:
        return [
            "every record of the micro-batch does so, so the weights are the likely cause rather than one of:",
            *notes,
        ]
    return notes


def _offenders(trainer: Trainer, collator: PackCollator, records: Sequence[int], *, gradients: bool) -> Iterator[int]:
    """Yield the records whose own loss or gradient is not finite, each computed alone."""
    model: Any = trainer.model
    model.eval()  # without dropout: the run is over, and a record is to blame whatever is dropped
    for index in records:
        batch = dict(collator([{"records": [index]}]))
        batch.pop("records")
        model.zero_grad()
        with torch.set_grad_enabled(gradients), trainer.compute_loss_context_manager():
            loss = model(**trainer._prepare_inputs(batch), use_cache=False).loss
        found = [loss]
        if gradients:
            loss.backward()
            found += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
            yield index
