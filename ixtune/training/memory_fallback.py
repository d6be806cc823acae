"""What a step does about memory that runs out: the worst pack is tried first, and a pack that fails is cut in two."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ixtune.errors import IxtuneError
from ixtune.layout import tokens_of
from ixtune.training.batch import Batch

# Forward and backward of a batch, gradients added to those that are there: the loss.
Step = Callable[[Batch], torch.Tensor]

_CURE = (
    "compute more layers again (training.gradient_checkpointing=true), let their inputs wait in main memory "
    "(training.offload_layer_inputs=true), lower training.pack_tokens, or prepare the data with a smaller --hd-num"
)
# What libraries below torch say in place of its own error.
_OTHER_WORDS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "can't allocate memory")


def rehearse(model: torch.nn.Module, batch: Batch, step: Step, reserve_bytes: int = 0) -> int | None:
    """Run one step on the worst pack of a run, and leave everything as it was.

    Args:
        model: whose gradients are put back.
        batch: the pack.
        step: forward and backward, with no part of the optimizer.
        reserve_bytes: what later steps hold besides, such as the optimizer's state, which its first step makes.

    Returns:
        The most bytes that were taken on the GPU, or None without one.

    Raises:
        IxtuneError: the pack does not fit.
    """
    device = next(model.parameters()).device
    kept = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.requires_grad]
    for parameter, _ in kept:
        parameter.grad = None
    failed = False
    with _random_state_kept(device):
        reserved = torch.empty(reserve_bytes, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            step(dict(batch))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            failed = True
        finally:
            del reserved
            for parameter, gradient in kept:
                parameter.grad = gradient
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    _free(device)
    if failed:
        raise IxtuneError(
            f"the largest pack of the run, {_size(batch)}, does not fit into memory; it was tried before any step",
            hint=_CURE,
        )
    return peak


def step_in_parts(
    step: Step,
    batch: Batch,
    model: torch.nn.Module,
    *,
    told: Callable[[str], None],
    named: Callable[[Batch], str] = lambda part: "",
) -> torch.Tensor:
    """A step that cuts its pack in two where memory runs out, and again, down to single records.

    The gradient is that of the whole pack but for rounding (and the draws of dropout): the loss is a sum over tokens
    divided by those of the whole optimizer step. A backward pass that breaks off leaves some parameters with the whole
    pack's gradient and the others with none of it, for each gets its own at one time; those that have it get nothing
    from the parts.

    Args:
        step: forward and backward of a pack or a part of one; weights tokens by those of the whole optimizer step.
        batch: the pack.
        model: whose parameters are trained.
        told: is called with a sentence for the reader at each cut. From then on a run cannot be repeated bit by bit.
        named: where a record that does not fit comes from.

    Returns:
        The loss of the pack, summed over its parts.

    Raises:
        IxtuneError: one record alone does not fit.
    """
    have_theirs: set[torch.nn.Parameter] = set()
    handles = [
        parameter.register_post_accumulate_grad_hook(have_theirs.add)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        return step(dict(batch))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
    finally:
        for handle in handles:
            handle.remove()
    # Outside of `except`, whose traceback would keep the activations of the failed pass alive.
    _free(batch["input_ids"].device)
    parts = split(batch)
    if not parts:
        raise IxtuneError(
            f"a single record, {_size(batch)}, does not fit into memory",
            where=named(batch),
            hint=_CURE,
        )
    told(f"memory ran out on a pack of {_size(batch)}: it is cut in two, so this run cannot be repeated bit by bit")
    # Switched off they could leave a part's loss without any gradient, which is an error.
    handles = [parameter.register_hook(torch.zeros_like) for parameter in have_theirs]
    try:
        losses = [step_in_parts(step, part, model, told=told, named=named) for part in parts]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(losses).sum()


def split(batch: Batch) -> list[Batch]:
    """Cut a pack between two records, about in its middle; images go where their records go.

    Returns:
        Two parts; one, where the other asks for no token, and would add nothing; none, where there is one record only.
    """
    bounds: list[int] = batch["cu_seq_lens_q"].tolist()
    if len(bounds) < 3:
        return []
    middle = min(range(1, len(bounds) - 1), key=lambda at: abs(2 * bounds[at] - bounds[-1]))
    parts = [_part(batch, bounds, 0, middle), _part(batch, bounds, middle, len(bounds) - 1)]
    return [part for part in parts if len(part["supervised"][0])]


def _part(batch: Batch, bounds: Sequence[int], first: int, last: int) -> Batch:
    """Segments first up to last of a pack."""
    start, stop = bounds[first], bounds[last]
    rows, targets = batch["supervised"]
    asked = (rows >= start) & (rows < stop)
    lengths = batch["cu_seq_lens_q"][first : last + 1] - start
    part: Batch = {
        **{name: batch[name][:, start:stop] for name in ("input_ids", "position_ids")},
        "cu_seq_lens_q": lengths,
        "max_length_q": int(lengths.diff().max()),
        "supervised": (rows[asked] - start, targets[asked]),
    }
    if "records" in batch:
        part["records"] = batch["records"][first:last]
    if "image_rows" in batch:
        shown = (batch["image_rows"] >= start) & (batch["image_rows"] < stop)
        if shown.any():
            part["image_rows"] = batch["image_rows"][shown] - start
            part |= _images(batch, int((batch["image_rows"] < start).sum()), int(shown.sum()))
    return part


def _images(batch: Batch, before: int, tokens: int) -> Batch:
    """The images behind `tokens` image positions, `before` of which come first in the pack."""
    if "image_vectors" in batch:
        return {"image_vectors": batch["image_vectors"][before : before + tokens]}
    ends = np.cumsum([0, *(tokens_of(*grid) for grid in batch["grids"])]).tolist()
    first, last = ends.index(before), ends.index(before + tokens)
    crops = np.cumsum([0, *(rows * cols for rows, cols in batch["grids"])]).tolist()
    return {"crops": batch["crops"][crops[first] : crops[last]], "grids": batch["grids"][first:last]}


def _size(batch: Batch) -> str:
    tokens, records = batch["input_ids"].numel(), len(batch["cu_seq_lens_q"]) - 1
    return f"{tokens:,} tokens" + (f" in {records} records" if records > 1 else "")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OTHER_WORDS)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries draw from it
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
