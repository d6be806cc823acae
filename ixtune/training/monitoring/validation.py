"""Validation loss, and the comparison of measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from ixtune.data.pack import pack
from ixtune.data.shared_prefixes import Prefixes, leave_alone
from ixtune.scores import SCORES
from ixtune.training.batch import Batch, ImageSource, make_batch
from ixtune.training.processes import parallel
from ixtune.training.state.progress import Progress
from ixtune.training.stopping import together

LOSS = "loss"
"""Name of the validation loss among the measurements; the others are scores."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Records(Protocol):
    """Prepared records by index."""

    @property
    def lengths(self) -> Sequence[int]:
        """Return the number of tokens of each record."""

    @property
    def prefixes(self) -> Prefixes | None:
        """Return the groups of records that share a prefix; None to compute each alone."""

    def record(self, index: int, /) -> dict[str, Any]:
        """Return a record."""


def mean_loss(
    model: torch.nn.Module,
    records: Records,
    images: ImageSource,
    pack_tokens: int,
    dtype: torch.dtype,
    leave: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the mean cross-entropy over all supervised tokens of some records, in evaluation mode.

    Several processes share the packs.

    Args:
        model: The network; its mode is restored.
        records: Records to measure on.
        images: Source of their images.
        pack_tokens: Maximum number of tokens per pack.
        dtype: Dtype of autocast.
        leave: Called before each pack; if it returns True in any process, measuring stops.

    Returns:
        The loss, or None if a process left.
    """
    config: Any = model.config
    lengths, record = records.lengths, records.record
    prefixes = leave_alone(records.prefixes, lengths, config.sizes.dynamic_above)
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    losses: dict[int, tuple[float, int]] = {}
    # a record of the set may be longer than any that is trained on
    pack_tokens = max(pack_tokens, *lengths)
    try:
        with together():
            for number, indices in parallel.share([*enumerate(pack(lengths, pack_tokens, prefixes))]):
                if leave():
                    break
                groups = list(prefixes.groups(indices)) if prefixes else None
                batch = to_device(make_batch([record(index) for index in indices], images, groups=groups), device)
                with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = float(model(**batch, num_items_in_batch=1.0, use_cache=False).loss)
                losses[number] = loss, len(batch["supervised"][1])
    finally:
        model.train(training)
    if parallel.any_of(leave()):
        return None
    found = [loss for _, loss in sorted(parallel.merged(losses).items())]  # in one order, so that sums are equal
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device."""
    return {key: _moved(value, device) for key, value in batch.items()}


def take_note(progress: Progress, measured: Mapping[str, float], step: int, by: str, patience: int | None) -> bool:
    """Store a measurement in the progress; return whether it is the best so far.

    `progress.stopped_early` is set if the patience is exhausted.

    Args:
        progress: the progress of the run.
        measured: `loss` and the scores, by name.
        step: step of the measurement.
        by: the measurement that decides. Among equal scores, which are common, the lower loss is better.
        patience: number of measurements without improvement after which to stop; None for never.
    """
    if progress.best_step is None or _is_better(measured, progress, by):
        progress.best_step, progress.worse_measurements = step, 0
        progress.best_loss = measured[LOSS]
        progress.best_scores = {name: value for name, value in measured.items() if name != LOSS}
        return True
    progress.worse_measurements += 1
    progress.stopped_early = patience is not None and progress.worse_measurements >= patience
    return False


def _is_better(measured: Mapping[str, float], progress: Progress, by: str) -> bool:
    if by != LOSS and measured[by] != progress.best_scores[by]:
        return (measured[by] > progress.best_scores[by]) == SCORES[by].higher_is_better
    assert progress.best_loss is not None
    return measured[LOSS] < progress.best_loss


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
        return tuple(item.to(device) for item in value)
    return value
