"""The loss on records that are not trained on: measuring it, keeping the best, stopping when it gets no better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ixtune.data.pack import pack
from ixtune.training import parallel
from ixtune.training.batch import Batch, PictureSource, make_batch
from ixtune.training.progress import Progress

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Records(Protocol):
    """Prepared records, by number."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each."""

    def record(self, index: int, /) -> dict[str, Any]:
        """One of them."""


def mean_loss(
    model: torch.nn.Module,
    records: Records,
    pictures: PictureSource,
    pack_tokens: int,
    dtype: torch.dtype,
) -> float:
    """Mean cross-entropy over all supervised tokens of some records, in evaluation mode.

    Of several processes each takes its share of the packs.
    """
    lengths, record = records.lengths, records.record
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    summed, count = 0.0, 0
    # a record of the set may be longer than any that is trained on
    pack_tokens = max(pack_tokens, *lengths)
    try:
        for indices in parallel.share(pack(lengths, pack_tokens)):
            batch = to_device(make_batch([record(index) for index in indices], pictures), device)
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                summed += float(model(**batch, num_items_in_batch=1.0, use_cache=False).loss)
            count += len(batch["supervised"][1])
    finally:
        model.train(training)
    summed, total = parallel.total(summed, count)
    return summed / total


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors where the model is."""
    return {key: _moved(value, device) for key, value in batch.items()}


def take_note(progress: Progress, loss: float, step: int, patience: int | None) -> bool:
    """Remember a measurement: whether it is the best so far; `progress.stopped_early` where patience is at its end."""
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_step, progress.worse_measurements = loss, step, 0
        return True
    progress.worse_measurements += 1
    progress.stopped_early = patience is not None and progress.worse_measurements >= patience
    return False


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
        return tuple(item.to(device) for item in value)
    return value
